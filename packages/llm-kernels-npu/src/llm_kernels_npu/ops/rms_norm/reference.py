"""The specification of rms_norm."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * (weight + offset)`.

    x [..., H], weight [H] → [..., H] in x's dtype. All in float32, rounded once at the end.
    `offset` is 1 for models that store the weight's distance from one (Gemma), else 0.
    """
    x32 = wide(x)
    inverse_rms = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * inverse_rms * (wide(weight) + offset)).to(x.dtype)
