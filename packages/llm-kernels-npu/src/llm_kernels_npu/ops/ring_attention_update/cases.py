"""Calls of ring_attention_update to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(batch: int, queries: int, heads: int, dim: int, *, unseen: bool = False) -> Case:
    """Two parts [B, T, H, E] with their statistics; `unseen`: some queries see no key of a part."""

    def part(seed: torch.Generator, *, unseen_queries: int) -> tuple[Tensor, ...]:
        out = torch.randn(batch, queries, heads, dim, generator=seed)
        largest = torch.randn(batch, heads, queries, generator=seed) * 3
        total = 1 + torch.rand(batch, heads, queries, generator=seed)
        out[:, :unseen_queries] = 0
        largest[..., :unseen_queries] = -torch.inf
        total[..., :unseen_queries] = 0
        return out, largest, total

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        first = part(seed, unseen_queries=2 * unseen)
        return *first, *part(seed, unseen_queries=1 * unseen)

    return Case(
        name=label((batch, queries, heads, dim), unseen=unseen),
        build=build,
        differentiable=0 if unseen else 6,
        stay_float32=frozenset({1, 2, 4, 5}),
    )


CHECK = (case(2, 7, 3, 8), case(1, 33, 4, 16), case(1, 5, 2, 8, unseen=True))


def bench(size: BenchSize) -> Case:
    """A layer's outputs over one sequence."""
    return case(1, size.tokens, size.heads, 128)
