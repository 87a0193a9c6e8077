"""Rules of multi-token-prediction layers, made from those of an ordinary layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import cast

from llm_ckpt.arch import Arch
from llm_ckpt.params import LAYER, MTP, MTP_LAYER
from llm_ckpt.rules import Rule, Same, Transposed
from llm_ckpt.table import Table

_MTP = MTP.partition("{")[0]
# Prediction layers that count on from the decoder's, as DeepSeek-V3 and GLM-4.5 store them. Their
# second embedding and head are the model's own, and are checked to be equal when they are stored.
NUMBERED = "model.layers.{n}."
NUMBERED_COPIES: Mapping[str, str] = {
    NUMBERED + "embed_tokens.weight": "model.embed_tokens.weight",
    NUMBERED + "shared_head.head.weight": "lm_head.weight",
}


def without_unstored(table: Table, stored: Iterable[str]) -> Arch:
    """The architecture less its prediction layers when no tensor of theirs is stored.

    Transformers leaves them out when it saves a model, and keeps their number in config.json.
    """
    entries = table.entries.items()
    wanted = {part.name for name, e in entries if name.startswith(_MTP) for part in e.parts}
    is_stored = not wanted.isdisjoint(stored)
    return table.arch if is_stored else table.arch.model_copy(update={"mtp": None})


def prediction_layers(layer_rules: Sequence[Rule], *, hf_layer: str, hf: str) -> tuple[Rule, ...]:
    """A prediction layer under `hf` (a pattern with `{n}` or `{m}`) as DeepSeek-V3 names its parts.

    `layer_rules` are those of an ordinary layer, whose Hugging Face names begin with `hf_layer`.
    """
    inner = tuple(
        _moved(rule, hf_layer, hf) for rule in layer_rules if rule.mcore.startswith(LAYER)
    )
    return (
        Same(MTP + "enorm.weight", hf + "enorm.weight"),
        Same(MTP + "hnorm.weight", hf + "hnorm.weight"),
        Same(MTP + "eh_proj.weight", hf + "eh_proj.weight"),
        *inner,
        Same(MTP + "final_layernorm.weight", hf + "shared_head.norm.weight"),
    )


def _moved(rule: Rule, hf_layer: str, hf: str) -> Rule:
    """The rule with every name in a prediction layer."""
    if isinstance(rule, Transposed):
        return Transposed(_moved(rule.rule, hf_layer, hf))
    if not is_dataclass(rule):
        raise TypeError(f"rule {rule!r} is no dataclass")
    names = {
        field.name: _renamed(value, hf_layer, hf)
        for field in fields(rule)
        if isinstance(value := getattr(rule, field.name), str)
    }
    return cast("Rule", replace(rule, **names))


def _renamed(name: str, hf_layer: str, hf: str) -> str:
    for old, new in ((LAYER, MTP_LAYER), (hf_layer, hf)):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(f"rule name {name!r} begins with neither {LAYER!r} nor {hf_layer!r}")
