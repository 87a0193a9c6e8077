"""Experts beside a dense feed-forward, their output added a layer later (arXiv 2509.01322, 2.2)."""

from collections.abc import Callable
from typing import Any, cast

import torch

Work = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def beside(branch: Work, work: Work) -> Callable[[torch.Tensor], tuple[torch.Tensor | None, ...]]:
    """`work` of an input, and what `branch` makes of the same: (output, bias, branch's output).

    Backward begins in neither before the gradients of both outputs are there, so that an input
    that is computed again is so for both.
    """

    def both(x: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made, _ = branch(x.view_as(x))
        out, bias = work(x)
        out, made = cast("tuple[torch.Tensor, ...]", _Together.apply(out, made))
        return out, bias, made

    return both


class _Together(torch.autograd.Function):
    """Its two inputs; their gradients go on at once."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, made: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return out.view_as(out), made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads
