"""linear_cross_entropy over chunks of rows; the backward computes each chunk's logits again."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.checks import wide

_MIN_CHUNK_ROWS = 256


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """See `reference.linear_cross_entropy`; the product is made in hidden's dtype."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Chunked.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(hidden, weight, targets, ignore_index)


def chunk_rows(rows: int, *, hidden_size: int, vocab_size: int) -> int:
    """Rows a chunk: as many as make its logits about as large as all of hidden."""
    return max(_MIN_CHUNK_ROWS, rows * hidden_size // max(vocab_size, 1))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
    ) -> Tensor:
        ignored = targets == ignore_index
        picks = targets.masked_fill(ignored, 0)
        losses = torch.empty(hidden.shape[0], dtype=wide(hidden[:0]).dtype, device=hidden.device)
        totals = torch.empty_like(losses)
        for rows in chunks(hidden, weight):
            logits = wide(hidden[rows] @ weight.T)
            totals[rows] = torch.logsumexp(logits, dim=1)
            losses[rows] = totals[rows] - logits.gather(1, picks[rows, None])[:, 0]
        ctx.save_for_backward(hidden, weight, picks, ignored, totals)
        return losses.masked_fill_(ignored, 0.0)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Context, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, picks, ignored, totals = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        row_grad = grad.masked_fill(ignored, 0.0)[:, None]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Chunks add up in float32: in bfloat16 late chunks would vanish.
        grad_weight = torch.zeros_like(weight, dtype=totals.dtype) if needs_weight else None
        for rows in chunks(hidden, weight):
            slope = wide(hidden[rows] @ weight.T).sub_(totals[rows, None]).exp_()
            slope.scatter_add_(1, picks[rows, None], slope.new_full((slope.shape[0], 1), -1.0))
            slope = slope.mul_(row_grad[rows]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = slope @ weight
            if grad_weight is not None:
                grad_weight += slope.T @ hidden[rows]
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None


def chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """The rows of each chunk, first to last."""
    rows, hidden_size = hidden.shape
    step = chunk_rows(rows, hidden_size=hidden_size, vocab_size=weight.shape[0])
    for start in range(0, rows, step):
        yield slice(start, start + step)
