"""Calls of attention to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, Option, label


def case(
    batch: int, queries: int, keys: int, heads: int, groups: int, dim: int, **options: Option
) -> Case:
    """Q [B, T, H, D] over k and v [B, S, G, D], causal unless said otherwise."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        q = torch.randn(batch, queries, heads, dim, generator=seed)
        k = torch.randn(batch, keys, groups, dim, generator=seed)
        return q, k, torch.randn(batch, keys, groups, dim, generator=seed)

    return Case(
        name=label((batch, queries, keys, heads, groups, dim), **options),
        build=build,
        options={"causal": True, **options},
        differentiable=3,
        features=frozenset({"window", "softcap"} & options.keys()),
    )


CHECK = (
    case(2, 33, 33, 4, 2, 16),
    case(1, 17, 17, 3, 1, 24, causal=False),
    case(1, 5, 29, 4, 4, 8),
    case(2, 1, 29, 4, 2, 16),
    case(1, 40, 40, 4, 2, 16, window=7),
    case(1, 6, 40, 4, 2, 16, window=11, scale=0.3),
    case(1, 19, 19, 4, 2, 16, softcap=5.0),
)


def bench(size: BenchSize) -> Case:
    """Causal attention of a layer over one sequence."""
    return case(1, size.tokens, size.tokens, size.heads, size.groups, 128)
