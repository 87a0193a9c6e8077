"""permute by `torch_npu.npu_moe_token_permute`."""

import torch
from torch import Tensor


def permute(tokens: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.permute`."""
    copies, rows = torch.ops.npu.npu_moe_token_permute.default(tokens, experts)
    return copies, rows
