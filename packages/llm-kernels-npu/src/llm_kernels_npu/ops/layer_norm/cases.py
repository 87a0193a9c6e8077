"""Calls of layer_norm to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(*shape: int, bias: bool = True, scale: float = 1.0, **options: float) -> Case:
    """X of that shape off zero, a weight near one and a bias."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        weight = 1 + 0.1 * torch.randn(shape[-1], generator=seed)
        x = (torch.randn(*shape, generator=seed) + 0.5) * scale
        return (x, weight, torch.randn(shape[-1], generator=seed)) if bias else (x, weight)

    return Case(
        name=label(shape, bias=bias, scale=scale, **options),
        build=build,
        options={"eps": 1e-5, **options},
        differentiable=3 if bias else 2,
    )


CHECK = (
    case(3, 7, 64),
    case(5, 63, offset=1.0),
    case(2, 3, 5, 129, bias=False),
    case(2, 33, scale=300.0),
)


def bench(size: BenchSize) -> Case:
    """A layer's norm."""
    return case(1, size.tokens, size.hidden)
