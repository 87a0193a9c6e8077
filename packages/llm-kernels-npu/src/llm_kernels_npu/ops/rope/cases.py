"""Calls of rope to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(batch: int, length: int, heads: int, dim: int, *, rotary: int, interleaved: bool) -> Case:
    """X [B, T, H, D] with the first `rotary` features of each head rotated."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(batch, length, heads, dim, generator=seed)
        return x, *tables(length, rotary, interleaved=interleaved)

    name = label((batch, length, heads, dim), rotary=rotary, interleaved=interleaved)
    return Case(name=name, build=build, options={"interleaved": interleaved})


def tables(length: int, rotary_dim: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Cosine and sine [1, T, 1, R] of base 10,000 for positions 0 … T − 1."""
    frequencies = 10_000 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.arange(length)[:, None] * frequencies
    angles = angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat((angles,) * 2, -1)
    return angles.cos()[None, :, None], angles.sin()[None, :, None]


CHECK = tuple(
    case(2, 9, 3, 32, rotary=rotary, interleaved=interleaved)
    for rotary in (32, 20, 2)
    for interleaved in (False, True)
)


def bench(size: BenchSize) -> Case:
    """The queries of a layer."""
    return case(1, size.tokens, size.heads, 128, rotary=128, interleaved=False)
