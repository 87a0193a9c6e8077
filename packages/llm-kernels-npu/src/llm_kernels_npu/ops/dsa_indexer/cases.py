"""Calls of dsa_indexer to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, Option, label


def case(
    batch: int, queries: int, keys: int, heads: int, dim: int, *, top_k: int, **options: Option
) -> Case:
    """Queries [B, T, H, D], keys [B, S, D] and weights [B, T, H] of either sign."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        q = torch.randn(batch, queries, heads, dim, generator=seed)
        k = torch.randn(batch, keys, dim, generator=seed)
        return q, k, torch.randn(batch, queries, heads, generator=seed)

    is_deepseek = (heads, dim) == (64, 128)
    return Case(
        name=label((batch, queries, keys, heads, dim), top_k=top_k, **options),
        build=build,
        options={"top_k": top_k, **options},
        differentiable=0,
        features=frozenset(() if is_deepseek else {"other_sizes"}),
    )


CHECK = (
    case(2, 9, 9, 64, 128, top_k=4),
    case(1, 3, 11, 64, 128, top_k=16),
    case(1, 4, 7, 64, 128, top_k=3, causal=False),
    case(2, 13, 17, 3, 8, top_k=5),
)


def bench(size: BenchSize) -> Case:
    """DeepSeek-V3.2's indexer over one sequence."""
    return case(1, size.tokens, size.tokens, 64, 128, top_k=min(2048, size.tokens // 2))
