"""Calls of add_rms_norm to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(*shape: int, scale: float = 1.0, **options: float) -> Case:
    """X and a residual of that shape, and a weight near one."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        weight = 1 + 0.1 * torch.randn(shape[-1], generator=seed)
        x, residual = torch.randn(2, *shape, generator=seed).unbind()
        return x * scale, residual * scale, weight

    name = label(shape, scale=scale, **options)
    return Case(name=name, build=build, options={"eps": 1e-6, **options}, differentiable=3)


CHECK = (
    case(3, 7, 64),
    case(5, 63, offset=1.0),
    case(2, 3, 5, 129, scale=1e-4),
    case(2, 33, scale=300.0),
)


def bench(size: BenchSize) -> Case:
    """A layer's residual sum and norm."""
    return case(1, size.tokens, size.hidden)
