"""Calls of grouped_matmul to compare and to time."""

import math

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(*sizes: int, inputs: int, outputs: int) -> Case:
    """X [M, K] of groups of those sizes, a weight [E, K, N]."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(sum(sizes), inputs, generator=seed)
        weight = torch.randn(len(sizes), inputs, outputs, generator=seed) / math.sqrt(inputs)
        return x, weight, torch.tensor(sizes)

    name = label((inputs, outputs), groups="+".join(map(str, sizes)))
    return Case(name=name, build=build, differentiable=2)


CHECK = (
    case(3, 0, 5, 1, inputs=16, outputs=24),
    case(0, 0, 4, inputs=7, outputs=5),
    case(6, inputs=8, outputs=8),
    case(0, 0, inputs=8, outputs=16),
)


def bench(size: BenchSize) -> Case:
    """The first linear of eight experts that share a batch evenly."""
    return case(*[size.tokens // 8] * 8, inputs=size.hidden, outputs=size.hidden)
