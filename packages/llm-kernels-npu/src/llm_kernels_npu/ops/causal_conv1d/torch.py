"""causal_conv1d by PyTorch's own depthwise convolution."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.causal_conv1d.reference import with_state


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_conv1d`; computed in x's dtype."""
    seen = with_state(x, weight.shape[1], initial_state)
    taps, shift = weight[:, None].to(x.dtype), None if bias is None else bias.to(x.dtype)
    out = functional.conv1d(seen.transpose(1, 2), taps, shift, groups=x.shape[2])
    out = functional.silu(out) if activation == "silu" else out
    return out.transpose(1, 2), seen[:, x.shape[1] :]
