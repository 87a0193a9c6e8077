"""The summed loss: its gradients are made in the forward, while a chunk's logits are there.

All rows then share one upstream gradient, which scales both gradients in the backward. Losses by
row have one each, unknown before the backward: there the logits are made a second time.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.linear_cross_entropy.chunks import add_outer, chunks

Chunk = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Logits [n, V], which it may overwrite, targets [n] and ignore_index → the losses [n] in float32
or wider, and their gradient by the logits [n, V] in the logits' dtype; zeros for ignored rows."""


def is_made_in_forward(hidden: Tensor, weight: Tensor) -> bool:
    """Whether a backward may follow, and the gradients may be made before it.

    Not in float16, where a sum over many rows would overflow before it is scaled.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return wanted and hidden.dtype is not torch.float16


def summed(
    chunk: Chunk, hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int
) -> Tensor:
    """The sum of all rows' losses, differentiable by hidden and weight."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Summed.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(chunk, hidden, weight, targets, ignore_index)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chunk: Chunk, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
    ) -> Tensor:
        _, needs_hidden, needs_weight, _, _ = ctx.needs_input_grad
        losses = hidden.new_empty(hidden.shape[0], dtype=wide(hidden[:0]).dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Wide until it is scaled, to be rounded once.
        grad_weight = torch.zeros_like(weight, dtype=losses.dtype) if needs_weight else None
        for rows in chunks(hidden, weight):
            logits = hidden[rows] @ weight.T
            losses[rows], slopes = chunk(logits, targets[rows], ignore_index)
            if grad_hidden is not None:
                grad_hidden[rows] = slopes @ weight
            if grad_weight is not None:
                add_outer(grad_weight, slopes, hidden[rows])
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = hidden.dtype
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Any, grad: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = (
            None if unit is None else _scaled(unit, grad, ctx.dtype) for unit in ctx.saved_tensors
        )
        return None, grad_hidden, grad_weight, None, None


def _scaled(unit: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """`unit * grad` in float32, rounded once; unit stays, as a second backward may come."""
    return torch.mul(wide(unit), grad, out=torch.empty_like(unit, dtype=dtype))
