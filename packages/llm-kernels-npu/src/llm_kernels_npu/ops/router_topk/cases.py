"""Calls of router_topk to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, Option, label


def case(
    tokens: int, experts: int, *, has_bias: bool = False, is_tied: bool = False, **options: Option
) -> Case:
    """Logits [N, E], maybe with a bias [E]; of tied ones only the choice is compared."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        logits = torch.randn(tokens, experts, generator=seed)
        if is_tied:
            logits = torch.randint(3, (tokens, experts), generator=seed).float()
        bias = torch.randn(experts, generator=seed)
        return (logits, bias) if has_bias else (logits,)

    is_raw = options.get("score") == "sigmoid" and not options.get("normalize")
    return Case(
        name=label((tokens, experts), bias=has_bias, tied=is_tied, **options),
        build=build,
        options=options,
        keywords=("bias",) if has_bias else (),
        differentiable=0 if is_tied else 1,
        features=frozenset({"unnormalized_sigmoid"} if is_raw else ()),
    )


CHECK = (
    case(7, 9, top_k=2),
    case(5, 16, top_k=3, normalize=True, scaling=2.5),
    case(6, 24, top_k=4, score="sigmoid", has_bias=True, normalize=True, scaling=2.5),
    case(9, 24, top_k=4, score="sigmoid", has_bias=True, normalize=True, groups=6, top_groups=3),
    case(9, 24, top_k=4, groups=4, top_groups=2, group_score="max"),
    case(9, 8, top_k=3, is_tied=True),
    case(6, 12, top_k=3, score="sigmoid", normalize=True, groups=4, top_groups=2, is_tied=True),
    case(4, 10, top_k=2, score="sigmoid"),
)


def bench(size: BenchSize) -> Case:
    """DeepSeek-V3's router."""
    return case(
        size.tokens,
        256,
        top_k=8,
        score="sigmoid",
        has_bias=True,
        normalize=True,
        groups=8,
        top_groups=4,
        scaling=2.5,
    )
