"""vocab_parallel_cross_entropy that keeps no softmax: its backward makes it from the logits."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    """See `reference.vocab_parallel_cross_entropy`."""
    ignored = targets == ignore_index
    local = targets - vocab_start
    mine = (local >= 0) & (local < logits.shape[1]) & ~ignored
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _VocabParallel.apply)  # pyright: ignore[reportUnknownMemberType]
    picks = local.masked_fill(~mine, 0)
    losses = run(logits, picks, mine, all_reduce_max, all_reduce_sum)
    return losses.masked_fill(ignored, 0.0)


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        logits: Tensor,
        picks: Tensor,
        mine: Tensor,
        all_reduce_max: AllReduce,
        all_reduce_sum: AllReduce,
    ) -> Tensor:
        logits32 = wide(logits)
        own_total = torch.logsumexp(logits32, dim=1)
        picked = logits32.gather(1, picks[:, None])[:, 0].masked_fill(~mine, 0.0)
        top = all_reduce_max(own_total.clone())
        sums = all_reduce_sum(torch.stack(((own_total - top).exp(), picked)))
        total = sums[0].log() + top
        ctx.save_for_backward(logits, picks, mine, total)
        return total - sums[1]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Context, grad: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        logits, picks, mine, total = ctx.saved_tensors
        slope = (wide(logits) - total[:, None]).exp_()
        slope.scatter_add_(1, picks[:, None], -mine[:, None].to(slope.dtype))
        return slope.mul_(grad[:, None]).to(logits.dtype), None, None, None, None
