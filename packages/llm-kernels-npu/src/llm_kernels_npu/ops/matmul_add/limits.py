"""What each backend of matmul_add takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import (
    FLOATS,
    alike,
    floating,
    npu_floating,
    on_npu,
    short,
    together,
)


def _any_device(out: Tensor, x: Tensor, y: Tensor) -> str | None:
    x_shape, y_shape = x.shape, y.shape
    if len(x_shape) != 2 or len(y_shape) != 2 or x_shape[0] != y_shape[0]:
        return f"x of shape {tuple(x_shape)} and y {tuple(y_shape)}, want [K, M] and [K, N]"
    if out.shape != (x_shape[1], y_shape[1]):
        return f"out of shape {tuple(out.shape)}, want {(x_shape[1], y_shape[1])} ([M, N])"
    dtype = x.dtype
    wanted = torch.float64 if dtype is torch.float64 else torch.float32
    if out.dtype is not wanted:
        return f"out is {short(out.dtype)}, want {short(wanted)}"
    if out.requires_grad:
        return "out takes a gradient: it is written to, pass its data"
    device = x.device
    if dtype is y.dtype in FLOATS and y.device == device and out.device == device:
        return None
    return floating("x", x) or alike("x", x, "y", y) or together("x", x, "out", out)


def _npu(out: Tensor, x: Tensor, y: Tensor) -> str | None:
    reason = on_npu("x", x) or _any_device(out, x, y) or npu_floating("x", x)
    if reason is None and not out.is_contiguous():
        reason = f"out has strides {tuple(out.stride())}, want contiguous"
    return reason


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "npu": _npu}
)
