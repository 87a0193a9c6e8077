"""Losses of some tokens at a time, so that the logits of all never exist together.

Backward makes the logits of each part again: a third more work in the output layer alone.
T tokens of this rank, B sequences, S = T · ranks tokens of whole sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """How a sequence is parted: `tokens` of a micro-batch at a time, over `ranks` with slices."""

    tokens: int
    ranks: int


def chunked_losses(
    losses: Losses,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    *,
    parameters: Sequence[torch.Tensor],
    parts: Parts,
) -> torch.Tensor:
    """Token losses [B, S] of hidden states [T, B, H] and labels [B, S].

    `losses` makes [B, s · ranks] of [s, B, H] and [B, s · ranks]: under sequence parallel the
    slices of all ranks one behind the other. `parameters` are all that it uses which may learn.
    """
    return cast("torch.Tensor", _ChunkedLosses.apply(losses, parts, labels, hidden, *parameters))


class _ChunkedLosses(torch.autograd.Function):
    """Keeps hidden states and labels; gradients of parameters are summed here, handed on once."""

    @staticmethod
    def forward(
        ctx: Any,
        losses: Losses,
        parts: Parts,
        labels: torch.Tensor,
        hidden: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.losses, ctx.parts, ctx.parameters = losses, parts, parameters
        ctx.save_for_backward(labels, hidden)
        out: torch.Tensor | None = None
        for rows, places in _each(hidden, parts):
            found = losses(hidden[rows], labels[:, places])
            out = found.new_empty(labels.shape) if out is None else out
            out[:, places] = found
        assert out is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        labels, hidden = ctx.saved_tensors
        learning = [one for one in ctx.parameters if one.requires_grad]
        grad_hidden = torch.empty_like(hidden)
        sums: list[torch.Tensor | None] = [None] * len(learning)
        for rows, places in _each(hidden, ctx.parts):
            part = hidden[rows].detach().requires_grad_()
            with torch.enable_grad():
                found = ctx.losses(part, labels[:, places])
            grad_part, *of_parameters = torch.autograd.grad(
                found, [part, *learning], grads[0][:, places]
            )
            grad_hidden[rows] = grad_part
            sums = [
                new if old is None else old.add_(new)
                for old, new in zip(sums, of_parameters, strict=True)
            ]
        by_id = {id(one): total for one, total in zip(learning, sums, strict=True)}
        return None, None, None, grad_hidden, *(by_id.get(id(one)) for one in ctx.parameters)


def _each(hidden: torch.Tensor, parts: Parts) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of a rank's slice, and the places in whole sequences of these rows on all ranks."""
    count, batch, _ = hidden.shape
    step = max(1, parts.tokens // (batch * parts.ranks))
    places = torch.arange(count * parts.ranks, device=hidden.device).view(parts.ranks, count)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        yield rows, places[:, rows].flatten()
