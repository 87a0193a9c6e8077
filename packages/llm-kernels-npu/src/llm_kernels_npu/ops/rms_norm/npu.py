"""rms_norm by `torch_npu.npu_rms_norm`."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
    """See `reference.rms_norm`."""
    fused = torch.ops.npu.npu_rms_norm.default
    if offset == 0.0 and x.dtype is weight.dtype:
        return fused(x, weight, eps)[0]
    # The fused operator wants both in one dtype; 1 + weight in bfloat16 would lose low bits.
    return fused(x.float(), weight.float() + offset, eps)[0].to(x.dtype)
