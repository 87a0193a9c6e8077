"""The specification of ring_attention_update."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def ring_attention_update(
    out: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    new_out: Tensor,
    new_max: Tensor,
    new_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over the keys of two parts, from the attention over each.

    out and new_out [B, T, H, E]; of each query's scores in a part, max [B, H, T] is the largest
    and sum [B, H, T] the sum of `exp(score - max)`, both float32 (float64 for float64 outputs).
    → out, max and sum over both parts' keys, which may be merged with a third part in turn.
    A query that sees no key of a part has max -inf, sum 0 and zeros there.
    """
    top = torch.maximum(softmax_max, new_max)
    # -inf less -inf is NaN: a query that has seen nothing yet is measured from zero.
    start = top.masked_fill(top == float("-inf"), 0.0)
    old_part = softmax_sum * (softmax_max - start).exp()
    new_part = new_sum * (new_max - start).exp()
    total = old_part + new_part
    divisor = total.masked_fill(total == 0, 1.0)
    weighted = wide(out) * _per_head(old_part / divisor) + wide(new_out) * _per_head(
        new_part / divisor
    )
    return weighted.to(out.dtype), top, total


def _per_head(weight: Tensor) -> Tensor:
    """[B, H, T] → [B, T, H, 1]."""
    return weight.transpose(1, 2)[..., None]
