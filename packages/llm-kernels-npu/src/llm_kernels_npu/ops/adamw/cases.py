"""Calls of adamw to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(*shape: int, step: int, **options: float) -> Case:
    """A parameter, its gradient and its averages in the middle of training."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        param, grad, exp_avg = torch.randn(3, *shape, generator=seed).unbind()
        return param, grad, exp_avg * 0.1, torch.rand(*shape, generator=seed) * 0.01

    settings = {"lr": 0.05, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    return Case(
        name=label(shape, step=step, **options),
        build=build,
        options={**settings, "step": step, **options},
        differentiable=0,
        mutated=(0, 2, 3),
        stay_float32=frozenset({0, 2, 3}),
    )


CHECK = (
    case(7, 33, step=1),
    case(130, step=1000, beta2=0.999),
    case(2, 3, 5, step=7, weight_decay=0.0, eps=1e-3),
)


def bench(size: BenchSize) -> Case:
    """A square layer's weight."""
    return case(size.hidden, size.hidden, step=100)
