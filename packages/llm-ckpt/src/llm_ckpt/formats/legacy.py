"""Megatron's legacy models: a nested state dict with names of their own.

`language_model` holds `embedding`, `encoder` (in older files `transformer`) and `output_layer`,
each a dictionary; layers are `encoder["layers.N.…"]`. A last stage keeps its copy of a tied
embedding under `word_embeddings_for_head`. Flattened, all but a few names of a layer are
megatron-core's (megatron/legacy/model/language_model.py, transformer.py of Megatron-LM 0.8).
"""

from collections.abc import Mapping
from typing import Any, cast

from llm_ckpt.errors import FormatError, first_few
from llm_ckpt.params import OUTPUT

ROOT = "language_model"
_HEAD = "word_embeddings_for_head"
_ENCODERS = ("encoder", "transformer")


def is_legacy(state: Mapping[str, Any]) -> bool:
    """Whether a state dict is that of a legacy model."""
    return isinstance(state.get(ROOT), Mapping)


def flattened(state: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Nested → dotted names that begin as megatron-core's do."""
    flat: dict[str, Any] = {}
    parts = cast("Mapping[str, Any]", state[ROOT])
    for name, value in parts.items():
        if name in _ENCODERS:
            flat |= {f"decoder.{key}": tensor for key, tensor in value.items()}
        elif name in ("embedding", "output_layer"):
            flat |= dict(_dotted(name, value))
        else:
            known = ", ".join((*_ENCODERS, "embedding", "output_layer"))
            raise FormatError(f"{where}: {ROOT} has {name!r}, want {known}")
    if head := state.get(_HEAD):
        flat[OUTPUT] = head["weight"]
    if rest := sorted(state.keys() - {ROOT, _HEAD}):
        raise FormatError(f"{where}: beside {ROOT} there are {first_few(rest)}")
    return flat


def nested(flat: Mapping[str, Any], *, is_tied: bool) -> dict[str, Any]:
    """The inverse of `flattened`, as the last releases with legacy models wrote it."""
    parts: dict[str, Any] = {}
    state: dict[str, Any] = {ROOT: parts}
    for name, value in flat.items():
        top, _, rest = name.partition(".")
        if name == OUTPUT and is_tied:
            state[_HEAD] = {"weight": value}
        elif top == "decoder":
            parts.setdefault("encoder", {})[rest] = value
        else:
            *parents, last = name.split(".")
            target = parts
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
    return state


def _dotted(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    items = cast("Mapping[str, Any]", value).items()
    return [pair for key, inner in items for pair in _dotted(f"{prefix}.{key}", inner)]
