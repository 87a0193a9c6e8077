"""What each backend of unpermute takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import (
    INTEGERS,
    floating,
    npu_floating,
    on_npu,
    short,
    together,
)

_NPU_MAX_TOP_K = 512


def _shapes(copies: Tensor, rows: Tensor, weights: Tensor) -> str | None:
    shape = copies.shape
    if (
        len(shape) != 2
        or weights.dim() != 2
        or weights.numel() != shape[0]
        or rows.shape != (shape[0],)
    ):
        return (
            f"copies of shape {tuple(shape)}, rows {tuple(rows.shape)}, weights "
            f"{tuple(weights.shape)}, want [N · K, H], [N · K], [N, K]"
        )
    if rows.dtype not in INTEGERS:
        return f"rows are {short(rows.dtype)}, want int32 or int64"
    device = copies.device
    if rows.device == device and weights.device == device:
        return None
    return together("copies", copies, "rows", rows) or together(
        "copies", copies, "weights", weights
    )


def _any_device(copies: Tensor, rows: Tensor, weights: Tensor) -> str | None:
    return (
        _shapes(copies, rows, weights) or floating("copies", copies) or floating("weights", weights)
    )


def _npu(copies: Tensor, rows: Tensor, weights: Tensor) -> str | None:
    if weights.dim() == 2 and weights.shape[1] > _NPU_MAX_TOP_K:
        return f"{weights.shape[1]} experts a token, want at most {_NPU_MAX_TOP_K}"
    return (
        on_npu("copies", copies)
        or _shapes(copies, rows, weights)
        or npu_floating("copies", copies)
        or npu_floating("weights", weights)
    )


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "npu": _npu}
)
