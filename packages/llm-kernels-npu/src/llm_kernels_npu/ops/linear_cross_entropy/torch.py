"""linear_cross_entropy over chunks of rows, by PyTorch's operators."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.linear_cross_entropy.chunks import add_outer
from llm_kernels_npu.ops.linear_cross_entropy.in_forward import Remade, losses_in_chunks
from llm_kernels_npu.signatures import Reduction


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "none",
    chunk_rows: int | None = None,
) -> Tensor:
    """See `reference.linear_cross_entropy`; the product is made in hidden's dtype."""
    # torch leaves `apply` untyped.
    remade = cast(Remade, _Chunked.apply)  # pyright: ignore[reportUnknownMemberType]
    return losses_in_chunks(
        _losses_and_slopes,
        remade,
        hidden,
        weight,
        targets,
        ignore_index=ignore_index,
        reduction=reduction,
        chunk_rows=chunk_rows,
    )


def _losses_and_slopes(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    ignored = targets == ignore_index
    picks = targets.masked_fill(ignored, 0)[:, None]
    log_probabilities = torch.log_softmax(logits, dim=1, dtype=wide(logits[:0]).dtype)
    losses = -log_probabilities.gather(1, picks)[:, 0]
    slopes = log_probabilities.exp_()
    slopes.scatter_add_(1, picks, slopes.new_full(picks.shape, -1.0))
    slopes.masked_fill_(ignored[:, None], 0.0)
    return losses.masked_fill_(ignored, 0.0), slopes.to(logits.dtype)


class _LossContext(Context, Protocol):
    slices: Sequence[slice]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _LossContext,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        slices: Sequence[slice],
        ignore_index: int,
    ) -> Tensor:
        ignored = targets == ignore_index
        picks = targets.masked_fill(ignored, 0)
        losses = torch.empty(hidden.shape[0], dtype=wide(hidden[:0]).dtype, device=hidden.device)
        totals = torch.empty_like(losses)
        for rows in slices:
            logits = wide(hidden[rows] @ weight.T)
            totals[rows] = torch.logsumexp(logits, dim=1)
            losses[rows] = totals[rows] - logits.gather(1, picks[rows, None])[:, 0]
        ctx.save_for_backward(hidden, weight, picks, ignored, totals)
        ctx.slices = slices
        return losses.masked_fill_(ignored, 0.0)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _LossContext, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, picks, ignored, totals = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        row_grad = grad.masked_fill(ignored, 0.0)[:, None]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=totals.dtype) if needs_weight else None
        for rows in ctx.slices:
            slope = wide(hidden[rows] @ weight.T).sub_(totals[rows, None]).exp_()
            slope.scatter_add_(1, picks[rows, None], slope.new_full((slope.shape[0], 1), -1.0))
            slope = slope.mul_(row_grad[rows]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = slope @ weight
            if grad_weight is not None:
                add_outer(grad_weight, slope, hidden[rows])
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None
