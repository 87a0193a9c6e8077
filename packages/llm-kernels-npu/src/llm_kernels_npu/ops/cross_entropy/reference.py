"""The specification of cross_entropy."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """`logsumexp(logits) - logits[target]` of each row; 0 where the target is ignore_index.

    logits [N, V], targets [N] int64 → [N] float32 (float64 for float64 logits). A row with a logit
    of +inf, which an overflow leaves, has no loss: NaN, as from PyTorch's own operator.
    """
    logits32 = wide(logits)
    ignored = targets == ignore_index
    picked = logits32.gather(1, targets.masked_fill(ignored, 0)[:, None])[:, 0]
    top = logits32.detach().amax(dim=1, keepdim=True)
    above_top = torch.logsumexp(logits32 - top, dim=1)
    return (above_top - (picked - top[:, 0])).masked_fill(ignored, 0.0)
