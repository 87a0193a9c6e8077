"""A longer context than a model was trained for: `--rope-scaling yarn:4` put into arch.json."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

from llm_infer.errors import InferError


def with_rope_scaling(document: Mapping[str, object], text: str) -> dict[str, object]:
    """A copy of an arch.json document with `KIND:FACTOR` and a context that many times as long.

    Raises InferError for a malformed text and for a model that this cannot be said of.
    """
    kind, _, number = text.partition(":")
    if kind not in _SCALINGS:
        raise InferError(f"rope scaling {text!r}: want KIND:FACTOR, KIND one of {_CHOICES}")
    try:
        factor = float(number)
    except ValueError:
        factor = 0.0
    if not 1.0 <= factor < float("inf"):
        raise InferError(f"rope scaling {text!r}: found factor {number!r}, want a number from 1 on")
    position = cast("Mapping[str, object]", document["position"])
    if position.get("kind") != "rope" or position.get("scaling") is not None:
        found = position.get("scaling") or f"position.kind {position.get('kind')}"
        raise InferError(f"rope scaling {text}: want a model with plain rope, found {found}")
    trained = cast(int, document["max_position_embeddings"])
    # Dynamic scaling is told by the trained length, and makes the context longer by itself.
    longest = trained if kind == "dynamic" else int(trained * factor)
    return {
        **document,
        "max_position_embeddings": longest,
        "position": {**position, "scaling": _SCALINGS[kind](factor, trained)},
    }


def _linear(factor: float, _: int) -> dict[str, object]:
    return {"kind": "linear", "factor": factor}


def _dynamic(factor: float, _: int) -> dict[str, object]:
    return {"kind": "dynamic", "factor": factor}


def _yarn(factor: float, trained: int) -> dict[str, object]:
    """With the paper's betas (arXiv 2309.00071) and transformers' attention factor."""
    return {
        "kind": "yarn",
        "factor": factor,
        "original_max_position_embeddings": trained,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": None,
        "mscale_all_dim": None,
        "truncate": True,
    }


_SCALINGS: Mapping[str, Callable[[float, int], dict[str, object]]] = MappingProxyType(
    {"dynamic": _dynamic, "linear": _linear, "yarn": _yarn}
)
_CHOICES = ", ".join(_SCALINGS)
