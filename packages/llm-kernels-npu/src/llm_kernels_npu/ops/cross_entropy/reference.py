"""The specification of cross_entropy."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """`logsumexp(logits) - logits[target]` of each row; 0 where the target is ignore_index.

    logits [N, V], targets [N] int64 → [N] float32 (float64 for float64 logits).
    """
    logits32 = wide(logits)
    ignored = targets == ignore_index
    picked = logits32.gather(1, targets.masked_fill(ignored, 0)[:, None])[:, 0]
    return (torch.logsumexp(logits32, dim=1) - picked).masked_fill(ignored, 0.0)
