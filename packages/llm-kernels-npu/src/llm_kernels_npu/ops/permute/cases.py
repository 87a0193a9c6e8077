"""Calls of permute to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(tokens: int, hidden: int, *, experts: int, top_k: int) -> Case:
    """Tokens [N, H] and `top_k` different experts of each."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(tokens, hidden, generator=seed)
        return x, choices(tokens, experts=experts, top_k=top_k, seed=seed)

    return Case(name=label((tokens, hidden), experts=experts, top_k=top_k), build=build)


def choices(tokens: int, *, experts: int, top_k: int, seed: torch.Generator) -> Tensor:
    """Different experts of each token [N, K], at random."""
    return torch.rand(tokens, experts, generator=seed).topk(top_k, dim=1).indices


CHECK = (
    case(13, 8, experts=5, top_k=2),
    case(7, 33, experts=64, top_k=3),
    case(9, 4, experts=3, top_k=1),
)


def bench(size: BenchSize) -> Case:
    """A batch over 64 experts, each token to 8."""
    return case(size.tokens, size.hidden, experts=64, top_k=8)
