"""Calls of gated_delta_rule to compare and to time."""

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.case import BenchSize, Case, Option, label


def case(
    batch: int,
    tokens: int,
    groups: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    *,
    has_state: bool = False,
    **options: Option,
) -> Case:
    """Keys of length one, decays and betas as a model's layers give them."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        q, k = (
            functional.normalize(
                torch.randn(batch, tokens, groups, key_dim, generator=seed), dim=-1
            )
            for _ in range(2)
        )
        v = torch.randn(batch, tokens, heads, value_dim, generator=seed)
        log_decay = -torch.rand(batch, tokens, heads, generator=seed)
        beta = torch.rand(batch, tokens, heads, generator=seed)
        state = torch.randn(batch, heads, key_dim, value_dim, generator=seed)
        return q, k, v, log_decay, beta, *((state,) if has_state else ())

    name = label((batch, tokens, groups, heads, key_dim, value_dim), **options)
    return Case(
        name=f"{name} state" if has_state else name,
        build=build,
        options=options,
        keywords=("initial_state",) if has_state else (),
        differentiable=6 if has_state else 5,
    )


CHECK = (
    case(2, 5, 1, 2, 8, 4),
    case(1, 70, 2, 2, 6, 5),
    case(1, 131, 1, 3, 5, 7, has_state=True),
    case(2, 1, 2, 4, 4, 4, has_state=True, scale=0.3),
)


def bench(size: BenchSize) -> Case:
    """A layer of Qwen3-Next's shape."""
    return case(1, size.tokens, size.heads // 2, size.heads, 128, 128)
