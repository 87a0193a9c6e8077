"""The specification of vocab_parallel_cross_entropy."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.signatures import AllReduce


def vocab_parallel_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    vocab_start: int,
    all_reduce_max: AllReduce,
    all_reduce_sum: AllReduce,
    ignore_index: int = -100,
) -> Tensor:
    """`cross_entropy` of all ranks' logits side by side; every rank gets every loss.

    logits [N, V / ranks], this rank's words `vocab_start` up to `vocab_start + V / ranks`;
    targets [N] int64, words of the whole vocabulary → [N] float32 (float64 for float64 logits).
    The reductions give the largest and the sum over the ranks and may write to their argument;
    the backward calls none. A target no rank holds counts as a word with logit 0: mind padding.
    """
    logits32 = wide(logits)
    ignored = targets == ignore_index
    local = targets - vocab_start
    mine = (local >= 0) & (local < logits.shape[1]) & ~ignored
    picked = logits32.gather(1, local.masked_fill(~mine, 0)[:, None])[:, 0]
    top = all_reduce_max(logits32.detach().amax(dim=1))
    portions = (logits32 - top[:, None]).exp().sum(dim=1)
    # torch leaves `apply` untyped.
    over_ranks = cast(Callable[..., Tensor], _SumOverRanks.apply)  # pyright: ignore[reportUnknownMemberType]
    total, target_logit = over_ranks(
        torch.stack((portions, picked.masked_fill(~mine, 0.0))), all_reduce_sum
    ).unbind()
    return (total.log() + top - target_logit).masked_fill(ignored, 0.0)


class _SumOverRanks(torch.autograd.Function):
    """The sum; each rank goes on to the same loss, so its part has the gradient of the sum."""

    @staticmethod
    def forward(ctx: Context, part: Tensor, all_reduce_sum: AllReduce) -> Tensor:
        del ctx
        return all_reduce_sum(part.clone())

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Context, grad: Tensor
    ) -> tuple[Tensor, None]:
        del ctx
        return grad, None
