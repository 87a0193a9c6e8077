"""Calls of unpermute to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(tokens: int, hidden: int, *, top_k: int) -> Case:
    """Copies [N · K, H] in some order, and the tokens' weights [N, K]."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        copies = torch.randn(tokens * top_k, hidden, generator=seed)
        rows = torch.randperm(tokens * top_k, generator=seed).int()
        weights = torch.rand(tokens, top_k, generator=seed)
        return copies, weights, rows

    name = label((tokens, hidden), top_k=top_k)
    return Case(name=name, build=build, differentiable=2, keywords=("weights", "rows"))


CHECK = (
    case(13, 8, top_k=2),
    case(7, 33, top_k=3),
    case(9, 4, top_k=1),
)


def bench(size: BenchSize) -> Case:
    """A batch whose tokens went to 8 experts each."""
    return case(size.tokens, size.hidden, top_k=8)
