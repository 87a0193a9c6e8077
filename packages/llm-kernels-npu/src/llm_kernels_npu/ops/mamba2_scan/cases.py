"""Calls of mamba2_scan to compare and to time."""

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.case import BenchSize, Case, label


def case(
    batch: int,
    tokens: int,
    heads: int,
    features: int,
    groups: int,
    states: int,
    *,
    extra: tuple[str, ...] = (),
) -> Case:
    """Steps after their softplus, rates below zero; of `extra` a skip `d_H`, an `initial_state`."""
    shapes = {"d_H": (heads,), "initial_state": (batch, heads, features, states)}

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(batch, tokens, heads, features, generator=seed)
        dt = functional.softplus(torch.randn(batch, tokens, heads, generator=seed) - 1)
        a = -torch.rand(heads, generator=seed) - 0.1
        b, c = torch.randn(2, batch, tokens, groups, states, generator=seed)
        return x, dt, a, b, c, *(torch.randn(shapes[name], generator=seed) for name in extra)

    return Case(
        name=" ".join((label((batch, tokens, heads, features, groups, states)), *extra)),
        build=build,
        keywords=extra,
        differentiable=5 + len(extra),
    )


CHECK = (
    case(2, 5, 4, 3, 2, 6),
    case(1, 70, 2, 5, 1, 4, extra=("d_H",)),
    case(1, 131, 3, 4, 3, 5, extra=("d_H", "initial_state")),
    case(2, 1, 2, 4, 1, 3, extra=("initial_state",)),
)


def bench(size: BenchSize) -> Case:
    """A layer of Mamba-2's shape, twice as wide as the model."""
    return case(1, size.tokens, size.hidden // 32, 64, 1, 128, extra=("d_H",))
