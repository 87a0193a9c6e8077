"""Calls of matmul_add to compare and to time."""

import math

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(rows: int, wide: int, high: int) -> Case:
    """A sum [M, N] so far, and K rows of two factors."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        out = torch.randn(wide, high, generator=seed)
        x = torch.randn(rows, wide, generator=seed) / math.sqrt(rows)
        return out, x, torch.randn(rows, high, generator=seed)

    return Case(
        name=label((rows, wide, high)),
        build=build,
        differentiable=0,
        mutated=(0,),
        stay_float32=frozenset({0}),
    )


CHECK = (case(7, 16, 33), case(130, 5, 24), case(1, 3, 4))


def bench(size: BenchSize) -> Case:
    """The gradient of a square layer's weight."""
    return case(size.tokens, size.hidden, size.hidden)
