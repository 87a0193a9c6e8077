"""What each backend of ring_attention_update takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import alike, floating, short, wide


def _any_device(
    out: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    new_out: Tensor,
    new_max: Tensor,
    new_sum: Tensor,
) -> str | None:
    if out.dim() != 4 or new_out.shape != out.shape:
        return f"out {tuple(out.shape)} and new_out {tuple(new_out.shape)}, want [B, T, H, E] twice"
    batch, queries, heads, _ = out.shape
    shape, dtype = (batch, heads, queries), wide(out[:0]).dtype
    statistics = {
        "softmax_max": softmax_max,
        "softmax_sum": softmax_sum,
        "new_max": new_max,
        "new_sum": new_sum,
    }
    # Compared here, not by calls: this runs at every step of a ring.
    for name, x in statistics.items():
        if x.shape != shape or x.dtype is not dtype or x.device != out.device:
            found = f"{tuple(x.shape)} {short(x.dtype)} on {x.device}"
            return f"{name} is {found}, want {shape} ([B, H, T]) {short(dtype)} on {out.device}"
    return floating("out", out) or alike("out", out, "new_out", new_out)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType({"reference": _any_device})
