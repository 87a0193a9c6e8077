"""What each backend of geglu takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import get_args

from torch import Tensor

from llm_kernels_npu.ops.checks import even, floating, npu_floating, on_npu, triton_floating
from llm_kernels_npu.signatures import GeluFormula

_FORMULAS = get_args(GeluFormula)


def _formula(approximate: str) -> str | None:
    if approximate in _FORMULAS:
        return None
    return f"approximate is {approximate!r}, want one of {', '.join(_FORMULAS)}"


def _any_device(x: Tensor, *, approximate: GeluFormula = "none") -> str | None:
    return even(x) or floating("x", x) or _formula(approximate)


def _npu(x: Tensor, *, approximate: GeluFormula = "none") -> str | None:
    if x.dim() > 8:
        return f"x has {x.dim()} dimensions, want 1 to 8"
    return on_npu("x", x) or even(x) or npu_floating("x", x) or _formula(approximate)


def _triton(x: Tensor, *, approximate: GeluFormula = "none") -> str | None:
    return even(x) or triton_floating("x", x) or _formula(approximate)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton, "npu": _npu}
)
