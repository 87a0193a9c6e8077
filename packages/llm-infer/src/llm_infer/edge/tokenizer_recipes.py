"""Which tokenizers transformers 5 takes from tokenizer.json, and which it builds by itself.

Some of its classes take only vocabulary, merges and post-processor of the file and make the rest as
they see fit. Where the file says the same as the class, reading the file is enough.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_AS_IN_FILE = frozenset({"TokenizersBackend", "PreTrainedTokenizer"})
# Model types whose tokenizer_config.json is known to name the wrong class, to the class that
# transformers takes. The others of MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS are as in the file.
_CORRECTED = {
    "hyperclovax_vision_v2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_moe": "Qwen3_5Tokenizer",
    "qwen3_5_moe_text": "Qwen3_5Tokenizer",
    "qwen4_exp": "Qwen3_5Tokenizer",
    "siglip2": "Siglip2Tokenizer",
}
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MODEL_FACTS = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
_MODEL_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """A tokenizer as a class of transformers builds it, but for vocabulary and post-processor."""

    model: Any
    normalizer: Any = None
    pre_tokenizer: Any
    decoder: Any
    special_tokens: tuple[str, ...]
    """Those that the class names where tokenizer_config.json does not."""


def is_as_in_file(
    core: Tokenizer, config: Mapping[str, Any], *, model_type: str | None, has_bytes: bool
) -> bool:
    """Whether transformers' tokenizer is `core`, which is tokenizer.json. False where in doubt.

    `config` is tokenizer_config.json, `model_type` that of config.json; `has_bytes` says that
    "ByteLevel" occurs in tokenizer.json.
    """
    named = config.get("tokenizer_class")
    if not isinstance(named, str):
        return False
    name = _CORRECTED.get(model_type or "", named).removesuffix("Fast")
    # Llama 3, DeepSeek and others name LlamaTokenizer and are none, as transformers sees too.
    if name in _AS_IN_FILE or (name == "LlamaTokenizer" and has_bytes):
        return True
    recipe = _recipe(name, config)
    return (
        recipe is not None
        and all(token in config for token in recipe.special_tokens)
        and _model_facts(core.model) == _model_facts(recipe.model)
        and _said(core.normalizer) == _said(recipe.normalizer)
        and _said(core.pre_tokenizer) == _said(recipe.pre_tokenizer)
        and _decoding(core.decoder) == _decoding(recipe.decoder)
    )


def _recipe(name: str, config: Mapping[str, Any]) -> _Recipe | None:
    """What models/*/tokenization_*.py of transformers 5 does."""
    make = {
        "Qwen2Tokenizer": _qwen2,
        "GPT2Tokenizer": _gpt2,
        "LlamaTokenizer": _llama,
        "GemmaTokenizer": _gemma,
    }
    return make[name](config) if name in make else None


def _qwen2(config: Mapping[str, Any]) -> _Recipe:
    has_prefix = bool(config.get("add_prefix_space"))
    split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix, use_regex=False)
    return _Recipe(
        model=models.BPE(fuse_unk=False, byte_fallback=False),
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Sequence([split, to_bytes]),
        decoder=decoders.ByteLevel(),
        special_tokens=("unk_token", "eos_token", "pad_token"),
    )


def _gpt2(config: Mapping[str, Any]) -> _Recipe:
    has_prefix = bool(config.get("add_prefix_space", False))
    return _Recipe(
        model=models.BPE(fuse_unk=False),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=has_prefix),
        decoder=decoders.ByteLevel(),
        special_tokens=("unk_token", "bos_token", "eos_token"),
    )


def _llama(config: Mapping[str, Any]) -> _Recipe:
    has_prefix = config.get("add_prefix_space") in (None, True)
    scheme = ("always" if config.get("legacy") else "first") if has_prefix else "never"
    steps = [*_byte_steps(), *([decoders.Strip(content=" ", left=1)] if has_prefix else [])]
    return _Recipe(
        model=models.BPE(fuse_unk=True, byte_fallback=True),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False),
        decoder=decoders.Sequence(steps),
        special_tokens=("unk_token", "bos_token", "eos_token"),
    )


def _gemma(config: Mapping[str, Any]) -> _Recipe:
    unknown = config.get("unk_token")
    unk_token = unknown if isinstance(unknown, str) else None
    return _Recipe(
        model=models.BPE(fuse_unk=True, byte_fallback=True, unk_token=unk_token),
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False),
        decoder=decoders.Sequence(_byte_steps()),
        special_tokens=("unk_token", "bos_token", "eos_token", "pad_token", "mask_token"),
    )


def _byte_steps() -> list[Any]:
    return [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def _model_facts(model: Any) -> tuple[object, ...]:
    """How a model cuts words, but for its vocabulary; no affix may be None or empty."""
    if not isinstance(model, models.BPE):
        return (type(model).__name__,)
    facts = [getattr(model, name) for name in _MODEL_FACTS]
    return ("BPE", *facts, *(getattr(model, name) or None for name in _MODEL_AFFIXES))


def _said(part: Any) -> object:
    """A part as tokenizer.json has it, but for what concerns offsets only."""
    return None if part is None else _without_offsets(json.loads(part.__getstate__()))


def _without_offsets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_offsets(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_offsets(one) for key, one in value.items() if key != "trim_offsets"}
    return value


def _decoding(decoder: Any) -> object:
    """As `_said`; a ByteLevel decoder has settings and uses none."""
    said = _said(decoder)
    is_bytes = isinstance(said, dict) and said["type"] == "ByteLevel"
    return "ByteLevel" if is_bytes else said
