"""What each backend of rope takes."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import (
    FLOATS,
    alike,
    floating,
    npu_floating,
    on_npu,
    together,
    triton_floating,
)

_TRITON_MAX_DIMENSIONS = 4
_TRITON_MAX_FEATURES = 1024
_NPU_MAX_DIM = 896
_NPU_MAX_BATCH_HEADS = 1000


def _shapes(x: Tensor, cos: Tensor, sin: Tensor) -> str | None:
    x_shape, cos_shape = x.shape, cos.shape
    rotary_dim = cos_shape[-1]
    if rotary_dim % 2 or rotary_dim > x_shape[-1]:
        return f"cos has {rotary_dim} features, want an even number up to x's {x_shape[-1]}"
    if sin.shape != cos_shape:
        return f"cos of shape {tuple(cos_shape)} but sin {tuple(sin.shape)}"
    if not _broadcasts(cos_shape, x_shape):
        return f"cos of shape {tuple(cos_shape)} does not broadcast over x {tuple(x_shape)}"
    device = cos.device
    if cos.dtype is sin.dtype and sin.device == device and x.device == device:
        return None
    return alike("cos", cos, "sin", sin) or together("x", x, "cos", cos)


def _broadcasts(sizes: Sequence[int], full: Sequence[int]) -> bool:
    if len(sizes) > len(full):
        return False
    # A plain loop: this runs at every call.
    for axis in range(2, len(sizes) + 1):
        if sizes[-axis] != 1 and sizes[-axis] != full[-axis]:
            return False
    return True


def _any_device(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> str | None:
    del interleaved
    reason = _shapes(x, cos, sin)
    if reason is None and not (x.dtype in FLOATS and cos.dtype in FLOATS):
        reason = floating("x", x) or floating("cos", cos)
    return reason


def _npu(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> str | None:
    if x.dim() != 4 or cos.dim() != 4:
        return f"x has {x.dim()} dimensions and cos {cos.dim()}, want 4 and 4"
    if cos.shape[-1] >= _NPU_MAX_DIM:
        return f"cos has {cos.shape[-1]} features, want fewer than {_NPU_MAX_DIM}"
    return (
        on_npu("x", x)
        or _shapes(x, cos, sin)
        or npu_floating("x", x)
        or npu_floating("cos", cos)
        or _npu_layout(x, cos, interleaved=interleaved)
    )


def _npu_layout(x: Tensor, cos: Tensor, *, interleaved: bool) -> str | None:
    # One axis is the sequence, where the table has its length; the others are batch and heads.
    shared = [size for size, table in zip(x.shape[:3], cos.shape[:3], strict=True) if table == 1]
    if interleaved:
        if len(shared) < 2:
            return (
                f"interleaved: cos of shape {tuple(cos.shape)}, want 1 on the batch and head axes"
            )
        if shared[0] * shared[1] >= _NPU_MAX_BATCH_HEADS:
            return f"interleaved: batch * heads of x is {shared[0] * shared[1]}, want < 1000"
    elif any(size >= _NPU_MAX_BATCH_HEADS for size in shared[:2]):
        return f"x of shape {tuple(x.shape)}: batch and heads must each be < 1000"
    return None


def _triton(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> str | None:
    del interleaved
    if x.dim() > _TRITON_MAX_DIMENSIONS:
        return f"x has {x.dim()} dimensions, want at most {_TRITON_MAX_DIMENSIONS}"
    if x.shape[-1] > _TRITON_MAX_FEATURES:
        return f"x has {x.shape[-1]} features, want at most {_TRITON_MAX_FEATURES}"
    reason = _shapes(x, cos, sin)
    return reason or triton_floating("x", x) or triton_floating("cos", cos)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton, "npu": _npu}
)
