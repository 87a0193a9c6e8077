"""linear_cross_entropy over chunks of rows, a chunk's logits turned into their gradient in place.

The products are PyTorch's.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.cross_entropy.triton import row_losses, write_slopes
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
    targets = targets.contiguous()
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
    losses, totals = row_losses(logits, targets, ignore_index=ignore_index)
    ones = torch.ones_like(losses)
    write_slopes(logits, targets, totals, ones, out=logits, ignore_index=ignore_index)
    return losses, logits


class _LossContext(Context, Protocol):
    slices: Sequence[slice]
    ignore_index: int


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
        losses = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        totals = torch.empty_like(losses)
        for rows in slices:
            losses[rows], totals[rows] = row_losses(
                hidden[rows] @ weight.T, targets[rows], ignore_index=ignore_index
            )
        ctx.save_for_backward(hidden, weight, targets, totals)
        ctx.slices, ctx.ignore_index = slices, ignore_index
        return losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _LossContext, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets, totals = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for rows in ctx.slices:
            slope = hidden[rows] @ weight.T
            write_slopes(
                slope,
                targets[rows],
                totals[rows],
                grad[rows],
                out=slope,
                ignore_index=ctx.ignore_index,
            )
            if grad_hidden is not None:
                grad_hidden[rows] = slope @ weight
            if grad_weight is not None:
                add_outer(grad_weight, slope, hidden[rows])
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None
