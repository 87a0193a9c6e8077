"""What each backend of matmul_add takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import alike, floating, npu_floating, on_npu, short, together, wide


def _any_device(out: Tensor, x: Tensor, y: Tensor) -> str | None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[0] != y.shape[0]:
        return f"x of shape {tuple(x.shape)} and y {tuple(y.shape)}, want [K, M] and [K, N]"
    if out.shape != (x.shape[1], y.shape[1]):
        return f"out of shape {tuple(out.shape)}, want {(x.shape[1], y.shape[1])} ([M, N])"
    wanted = wide(x[:0]).dtype
    if out.dtype is not wanted:
        return f"out is {short(out.dtype)}, want {short(wanted)}"
    if out.requires_grad:
        return "out takes a gradient: it is written to, pass its data"
    return floating("x", x) or alike("x", x, "y", y) or together("x", x, "out", out)


def _npu(out: Tensor, x: Tensor, y: Tensor) -> str | None:
    reason = on_npu("x", x) or _any_device(out, x, y) or npu_floating("x", x)
    if reason is None and not out.is_contiguous():
        reason = f"out has strides {tuple(out.stride())}, want contiguous"
    return reason


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "npu": _npu}
)
