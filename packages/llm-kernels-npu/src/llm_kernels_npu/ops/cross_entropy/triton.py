"""cross_entropy in Triton; the backward computes the softmax again from each row's logarithm."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.cross_entropy import triton_kernels as kernels
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.tiles import programs, row_tile, warps

_MOST_COLUMNS = 8192


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """See `reference.cross_entropy`; a target outside the vocabulary gives NaN."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _CrossEntropy.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(logits, targets, ignore_index)


class _LossContext(Context, Protocol):
    ignore_index: int


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _LossContext, logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        logits, targets = logits.contiguous(), targets.contiguous()
        losses, totals = row_losses(logits, targets, ignore_index=ignore_index)
        ctx.save_for_backward(logits, targets, totals)
        ctx.ignore_index = ignore_index
        return losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _LossContext, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        logits, targets, totals = ctx.saved_tensors
        found = torch.empty_like(logits)
        write_slopes(logits, targets, totals, grad, out=found, ignore_index=ctx.ignore_index)
        return found, None, None


def row_losses(logits: Tensor, targets: Tensor, *, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Losses and logarithms of the sums of exponentials [N], float32, of contiguous logits."""
    losses = logits.new_empty(logits.shape[0], dtype=torch.float32)
    totals = torch.empty_like(losses)
    tensors = (logits, targets, losses, totals)
    _each_row(kernels.forward_kernel, "forward", tensors, logits, ignore_index)
    return losses, totals


def write_slopes(
    logits: Tensor,
    targets: Tensor,
    totals: Tensor,
    grad: Tensor,
    *,
    out: Tensor,
    ignore_index: int,
) -> None:
    """Write the logits' gradient to `out` [N, V], which may be the logits themselves."""
    tensors = (logits, targets, totals, grad.contiguous(), out)
    _each_row(kernels.backward_kernel, "backward", tensors, logits, ignore_index)


def _each_row(
    kernel: object, part: str, tensors: tuple[Tensor, ...], logits: Tensor, ignore_index: int
) -> None:
    rows, vocab = logits.shape
    cost = f"cross_entropy.{part}"
    tile = row_tile(cost, vocab, itemsize=logits.itemsize, target=TARGET, most=_MOST_COLUMNS)
    numbers = (rows, vocab, ignore_index)
    launch(kernel, (programs(rows),), *tensors, *numbers, warps=warps(tile), TILE=tile)
