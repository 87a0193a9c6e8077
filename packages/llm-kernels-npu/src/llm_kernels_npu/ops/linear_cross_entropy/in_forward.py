"""The loss whose gradients are made in the forward, while a chunk's logits are there.

The backward scales them: the summed loss both by its one upstream gradient, losses by row the
hidden states' by each row's. The weight's adds all rows up, so by row it cannot be scaled
afterwards: where the weight learns, the logits are made a second time.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.linear_cross_entropy.chunks import add_outer, chunks
from llm_kernels_npu.signatures import Reduction

Chunk = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Logits [n, V], which it may overwrite, targets [n] and ignore_index → the losses [n] in float32
or wider, and their gradient by the logits [n, V] in the logits' dtype; zeros for ignored rows."""


Remade = Callable[[Tensor, Tensor, Tensor, Sequence[slice], int], Tensor]
"""Hidden states, weight, targets, each chunk's rows and ignore_index → the losses by row,
differentiable by a backward that makes the logits again."""


def losses_in_chunks(
    chunk: Chunk,
    remade: Remade,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int,
    reduction: Reduction,
    chunk_rows: int | None,
) -> Tensor:
    """The losses or their sum: with gradients made in the forward, or else `remade`."""
    slices = chunks(hidden, weight, chunk_rows=chunk_rows)
    if _is_made_in_forward(hidden, weight, reduction=reduction):
        # torch leaves `apply` untyped.
        run = cast(Callable[..., Tensor], _InForward.apply)  # pyright: ignore[reportUnknownMemberType]
        return run(chunk, hidden, weight, targets, slices, ignore_index, reduction)
    losses = remade(hidden, weight, targets, slices, ignore_index)
    return losses.sum() if reduction == "sum" else losses


def _is_made_in_forward(hidden: Tensor, weight: Tensor, *, reduction: Reduction) -> bool:
    """Whether a backward may follow, and the gradients may be made before it.

    Not in float16: unscaled, sums over many rows overflow there and small probabilities vanish.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    scales = reduction == "sum" or not weight.requires_grad
    return wanted and scales and hidden.dtype is not torch.float16


class _InForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chunk: Chunk,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        slices: Sequence[slice],
        ignore_index: int,
        reduction: Reduction,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[1:3]
        losses = hidden.new_empty(hidden.shape[0], dtype=wide(hidden[:0]).dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Wide until it is scaled, to be rounded once.
        grad_weight = torch.zeros_like(weight, dtype=losses.dtype) if needs_weight else None
        for rows in slices:
            logits = hidden[rows] @ weight.T
            losses[rows], slopes = chunk(logits, targets[rows], ignore_index)
            if grad_hidden is not None:
                grad_hidden[rows] = slopes @ weight
            if grad_weight is not None:
                add_outer(grad_weight, slopes, hidden[rows])
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = hidden.dtype
        return losses.sum() if reduction == "sum" else losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Any, grad: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None, None, None, None, None]:
        factor = grad[:, None] if grad.dim() else grad
        grad_hidden, grad_weight = (
            None if unit is None else _scaled(unit, factor, ctx.dtype) for unit in ctx.saved_tensors
        )
        return None, grad_hidden, grad_weight, None, None, None, None


def _scaled(unit: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`unit * factor` in float32, rounded once; unit stays, as a second backward may come."""
    return torch.mul(wide(unit), factor, out=torch.empty_like(unit, dtype=dtype))
