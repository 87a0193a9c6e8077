"""What each backend of rms_norm takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import (
    FLOATS,
    floating,
    npu_floating,
    on_npu,
    together,
    triton_floating,
)


def _shapes(x: Tensor, weight: Tensor) -> str | None:
    shape = x.shape
    if weight.shape != shape[-1:]:
        return f"weight of shape {tuple(weight.shape)}, want {tuple(shape[-1:])} as x ends in it"
    if x.device == weight.device:
        return None
    return together("x", x, "weight", weight)


def _any_device(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> str | None:
    del eps, offset
    reason = _shapes(x, weight)
    if reason is None and not (x.dtype in FLOATS and weight.dtype in FLOATS):
        reason = floating("x", x) or floating("weight", weight)
    return reason


def _npu(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> str | None:
    del eps, offset
    if not 2 <= x.dim() <= 8:
        return f"x has {x.dim()} dimensions, want 2 to 8"
    return (
        on_npu("x", x)
        or _shapes(x, weight)
        or npu_floating("x", x)
        or npu_floating("weight", weight)
    )


def _triton(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> str | None:
    del eps, offset
    return _shapes(x, weight) or triton_floating("x", x) or triton_floating("weight", weight)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton, "npu": _npu}
)
