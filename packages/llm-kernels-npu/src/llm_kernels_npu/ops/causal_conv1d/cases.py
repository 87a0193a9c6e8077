"""Calls of causal_conv1d to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, Option, label


def case(
    batch: int,
    tokens: int,
    channels: int,
    width: int,
    *,
    extra: tuple[str, ...] = (),
    **options: Option,
) -> Case:
    """X [B, T, C], a weight [C, W], and of `extra` a bias or the tokens before the first."""
    shapes = {"bias": (channels,), "initial_state": (batch, width - 1, channels)}

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(batch, tokens, channels, generator=seed)
        weight = torch.randn(channels, width, generator=seed) / width**0.5
        return x, weight, *(torch.randn(shapes[name], generator=seed) for name in extra)

    return Case(
        name=" ".join((label((batch, tokens, channels, width), **options), *extra)),
        build=build,
        options=options,
        keywords=extra,
        differentiable=2 + len(extra),
    )


CHECK = (
    case(2, 9, 6, 4, activation="silu"),
    case(1, 5, 7, 3, extra=("bias",)),
    case(2, 2, 5, 4, extra=("bias", "initial_state"), activation="silu"),
    case(1, 3, 4, 1),
)


def bench(size: BenchSize) -> Case:
    """The convolution of a layer twice as wide as the model."""
    return case(1, size.tokens, 2 * size.hidden, 4, activation="silu")
