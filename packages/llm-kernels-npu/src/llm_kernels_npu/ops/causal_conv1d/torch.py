"""causal_conv1d by PyTorch's own depthwise convolution."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.causal_conv1d import reference


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_conv1d`; computed in x's dtype, of float16 in float32.

    In float16 sums overflow that come back, and silu is NaN of one below -65504.
    """
    if not x.shape[1]:  # PyTorch refuses to convolve nothing.
        return reference.causal_conv1d(x, weight, bias, initial_state, activation=activation)
    dtype = torch.float32 if x.dtype is torch.float16 else x.dtype
    seen = reference.with_state(x, weight.shape[1], initial_state)
    taps, shift = weight[:, None].to(dtype), None if bias is None else bias.to(dtype)
    out = functional.conv1d(seen.transpose(1, 2).to(dtype), taps, shift, groups=x.shape[2])
    out = functional.silu(out) if activation == "silu" else out
    return out.transpose(1, 2).to(x.dtype), seen[:, x.shape[1] :]
