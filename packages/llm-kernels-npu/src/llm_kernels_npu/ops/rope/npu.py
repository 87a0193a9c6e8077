"""rope by `torch_npu.npu_rotary_mul`."""

import torch
from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """See `reference.rope`."""
    rotary_dim = cos.shape[-1]
    mode = "interleave" if interleaved else "half"
    # The fused operator wants tables in x's dtype and would give them gradients.
    cos, sin = cos.detach().to(x.dtype), sin.detach().to(x.dtype)
    fused = torch.ops.npu.npu_rotary_mul.default
    if rotary_dim == x.shape[-1]:
        return fused(x, cos, sin, mode)
    turned = fused(x[..., :rotary_dim].contiguous(), cos, sin, mode)
    return torch.cat((turned, x[..., rotary_dim:]), dim=-1)
