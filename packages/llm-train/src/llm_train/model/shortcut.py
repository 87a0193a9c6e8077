"""Experts beside a dense feed-forward, their output added a layer later (arXiv 2509.01322, 2.2)."""

from collections.abc import Callable

import torch

Work = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def beside(branch: Work, work: Work) -> Callable[[torch.Tensor], tuple[torch.Tensor | None, ...]]:
    """`work` of an input, and what `branch` makes of the same: (output, bias, branch's output)."""

    def both(x: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The branch goes first: backward takes last what came first, and so finds an input that is
        # computed again once the gradient of `out` is known. Through a view the gradients of its
        # many uses in the branch meet first, as they do when the branch is computed again.
        made, _ = branch(x.view_as(x))
        out, bias = work(x)
        return out, bias, made

    return both
