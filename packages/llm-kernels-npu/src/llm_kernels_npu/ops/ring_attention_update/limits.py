"""What each backend of ring_attention_update takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import FLOATS, alike, floating, short


def _any_device(
    out: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    new_out: Tensor,
    new_max: Tensor,
    new_sum: Tensor,
) -> str | None:
    out_shape, device, dtype = out.shape, out.device, out.dtype
    if len(out_shape) != 4 or new_out.shape != out_shape:
        return f"out {tuple(out_shape)} and new_out {tuple(new_out.shape)}, want [B, T, H, E] twice"
    batch, queries, heads, _ = out_shape
    shape = (batch, heads, queries)
    wanted = torch.float64 if dtype is torch.float64 else torch.float32
    if (
        dtype is new_out.dtype in FLOATS
        and softmax_max.shape == softmax_sum.shape == new_max.shape == new_sum.shape == shape
        and softmax_max.dtype is softmax_sum.dtype is new_max.dtype is new_sum.dtype is wanted
        and softmax_max.device == softmax_sum.device == new_max.device == new_sum.device == device
        and new_out.device == device
    ):
        return None
    statistics = {
        "softmax_max": softmax_max,
        "softmax_sum": softmax_sum,
        "new_max": new_max,
        "new_sum": new_sum,
    }
    for name, x in statistics.items():
        if x.shape != shape or x.dtype is not wanted or x.device != device:
            found = f"{tuple(x.shape)} {short(x.dtype)} on {x.device}"
            return f"{name} is {found}, want {shape} ([B, H, T]) {short(wanted)} on {device}"
    return floating("out", out) or alike("out", out, "new_out", new_out)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType({"reference": _any_device})
