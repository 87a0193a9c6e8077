"""Calls of sparse_attention to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, Option, label


def case(
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    dim: int,
    *,
    value_dim: int,
    top_k: int,
    **options: Option,
) -> Case:
    """Up to `top_k` of the keys that a causal query sees, at random."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        q = torch.randn(batch, queries, heads, dim, generator=seed)
        kv = torch.randn(batch, keys, dim, generator=seed)
        behind = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        ranks = torch.rand(batch, queries, keys, generator=seed).masked_fill(behind, -1.0)
        best = ranks.topk(min(top_k, keys), dim=-1)
        chosen = best.indices.masked_fill(best.values < 0, -1)
        return q, kv, chosen.int()

    is_deepseek = (dim, value_dim) == (576, 512)
    return Case(
        name=label((batch, queries, keys, heads, dim), value=value_dim, top_k=top_k, **options),
        build=build,
        options={"value_dim": value_dim, **options},
        differentiable=2,
        features=frozenset(() if is_deepseek else {"other_sizes"}),
    )


CHECK = (
    case(2, 6, 6, 2, 576, value_dim=512, top_k=3),
    case(1, 3, 9, 4, 576, value_dim=512, top_k=16, scale=0.05),
    case(2, 7, 13, 3, 12, value_dim=8, top_k=4),
    case(1, 5, 5, 2, 6, value_dim=6, top_k=2, scale=0.7),
)


def bench(size: BenchSize) -> Case:
    """DeepSeek-V3.2's attention over one sequence, with an eighth of its heads."""
    top_k = min(2048, size.tokens // 2)
    return case(1, size.tokens, size.tokens, 16, 576, value_dim=512, top_k=top_k)
