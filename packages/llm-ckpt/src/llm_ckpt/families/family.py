"""What a family is: config.json fields, rules and names, all data."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from llm_ckpt.arch import Arch, differences, parse_arch
from llm_ckpt.errors import ArchError, first_few, suggest
from llm_ckpt.families.fields import Codec, Facts, Json, nest
from llm_ckpt.families.layers import settle
from llm_ckpt.rules import Rule
from llm_ckpt.table import Table, compile_table

_Tensor = TypeVar("_Tensor")  # however a folder's tensors are held

# Keys of any config.json that say nothing about the weights or how they are computed with.
RUNTIME_KEYS: Mapping[str, Json] = {
    "_name_or_path": "",
    "architectures": None,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "dtype": None,
    "eos_token_id": None,
    "id2label": None,
    "initializer_range": 0.02,
    "label2id": None,
    "model_type": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "problem_type": None,
    "return_dict": True,
    "torch_dtype": None,
    "transformers_version": None,
    "use_cache": True,
}
# More of them, which folders on the hub carry and we never write: names of code and tokenizers,
# options of generation, of classifiers, of attention kernels, of tools that made the folder.
HARMLESS_KEYS = frozenset(
    (
        *("auto_map", "tokenizer_class", "unk_token_id", "sep_token_id", "eod_token_id"),
        *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation"),
        *("use_flash_attn", "unsloth_version", "unsloth_fixed", "transformers.js_config"),
        *("max_length", "min_length", "do_sample", "num_beams", "temperature", "top_k", "top_p"),
        *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "early_stopping"),
        *("return_dict_in_generate", "output_scores", "prefix", "task_specific_params"),
        *("finetuning_task", "num_labels", "is_decoder", "torchscript", "use_bfloat16"),
    )
)
# Keys that would mean another model, with the values that mean none.
NEUTRAL_KEYS: Mapping[str, tuple[Json, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
}
# Those of RUNTIME_KEYS that a generated config.json carries, in transformers' own spelling.
WRITTEN_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "use_cache",
)

# Quantisations whose tensors formats/quantized.py reads.
QUANTIZATION = "quantization_config"
QUANT_METHODS = ("fp8", "mxfp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family: `model_type` of config.json, its fields, and the rules of its weights."""

    name: str
    architecture: str
    fields: tuple[Codec, ...]
    constants: Mapping[str, Json]
    rules: tuple[Rule, ...]
    copies: Mapping[str, str]
    # Second names that this family's folders have for a tensor (`{n}`: of each prediction layer).
    duplicates: Mapping[str, str] = field(default_factory=dict[str, str])
    # Patterns of names that hold nothing to keep, and of tensors that arch.json cannot say; the
    # latter are left out with a note.
    buffers: tuple[str, ...] = ()
    # What names of the oldest folders lack, which were saved without the head (GPT-2, BLOOM).
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    def read_config(self, config: Mapping[str, Json], *, where: str) -> Arch:
        """config.json → arch; a key or value that arch.json cannot say is an error."""
        self._check_keys(config, where=where)
        facts: Facts = {"format": "arch", "version": 1, "family": self.name, **self.constants}
        for codec in self.fields:
            facts.update(codec.read(config, where=where))
        return parse_arch(nest(settle(facts)), where=where)

    def write_config(self, arch: Arch, *, dtype: str) -> dict[str, Json]:
        """The config.json of `arch`, transformers writes it; refuses what the family cannot say."""
        config: dict[str, Json] = {
            "architectures": [self.architecture],
            "model_type": self.name,
            "dtype": dtype,
            **{key: RUNTIME_KEYS[key] for key in WRITTEN_KEYS},
        }
        for codec in self.fields:
            config.update(codec.write(arch))
        again = self.read_config(config, where=f"family {self.name}")
        if lost := differences(arch, again):
            found = first_few(lost)
            raise ArchError(f"family {self.name} cannot express {found} of this arch.json")
        return dict(sorted(config.items()))

    def amend_config(self, config: Mapping[str, Json], arch: Arch) -> dict[str, Json]:
        """A config.json with the keys changed that say something else than `arch`."""
        amended = dict(config)
        written = self.write_config(arch, dtype="float32")
        where = f"family {self.name}"
        for codec in self.fields:
            if codec.read(config, where=where) != codec.read(written, where=where):
                amended = {key: v for key, v in amended.items() if key not in codec.keys}
                amended |= {key: written[key] for key in codec.keys if key in written}
        return amended

    def table(self, arch: Arch) -> Table:
        """The rules bound to `arch`."""
        return compile_table(
            self.rules,
            arch,
            copies=self.copies,
            duplicates=self.duplicates,
            buffers=(*self.buffers, *self.left_out),
        )

    def not_converted(self, stored: Iterable[str]) -> list[str]:
        """The stored names that are left out."""
        return sorted(n for n in stored if any(re.fullmatch(p, n) for p in self.left_out))

    def with_prefix(self, stored: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
        """The tensors of a folder, under whole names if every one lacks the family's prefix."""
        if not self.prefix or any(name.startswith(self.prefix) for name in stored):
            return dict(stored)
        heads = {part for rule in self.rules for part in rule.parts if "{" not in part}
        return {name if name in heads else self.prefix + name: s for name, s in stored.items()}

    def _check_keys(self, config: Mapping[str, Json], *, where: str) -> None:
        known = {key for codec in self.fields for key in codec.keys} | RUNTIME_KEYS.keys()
        known |= {QUANTIZATION, *HARMLESS_KEYS, *NEUTRAL_KEYS}
        for key, values in NEUTRAL_KEYS.items():
            if key in config and config[key] not in values:
                raise ArchError(
                    f"{where}: {key}={config[key]!r} cannot be converted, want {values[0]!r}"
                )
        _check_quantization(config.get(QUANTIZATION), where=where)
        if unknown := sorted(config.keys() - known):
            found = ", ".join(f"{key}={json.dumps(config[key])[:60]}" for key in unknown[:5])
            raise ArchError(
                f"{where}: {len(unknown)} keys that family {self.name} does not know: {found}"
                f"{suggest(unknown[0], known)}"
            )


def _check_quantization(facts: Json, *, where: str) -> None:
    if facts is None:
        return
    is_object = isinstance(facts, dict)
    method = cast("Mapping[str, Json]", facts).get("quant_method") if is_object else facts
    if method not in QUANT_METHODS:
        raise ArchError(
            f"{where}: {QUANTIZATION}.quant_method {method!r} cannot be read, want one of "
            f"{', '.join(QUANT_METHODS)}"
        )
