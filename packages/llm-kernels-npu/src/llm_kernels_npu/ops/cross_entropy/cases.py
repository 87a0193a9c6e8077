"""Calls of cross_entropy to compare and to time."""

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label


def case(
    rows: int, vocab: int, *, scale: float = 1.0, ignore_every: int = 3, **options: int
) -> Case:
    """Logits [N, V]; every n-th target is the ignored one."""

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        logits = torch.randn(rows, vocab, generator=seed) * scale
        return logits, targets(rows, vocab, ignore_every=ignore_every, seed=seed, **options)

    name = label((rows, vocab), scale=scale, ignore_every=ignore_every, **options)
    return Case(name=name, build=build, options=options)


def targets(
    rows: int, vocab: int, *, ignore_every: int, seed: torch.Generator, ignore_index: int = -100
) -> Tensor:
    """Random targets [N], every n-th of them ignored."""
    drawn = torch.randint(vocab, (rows,), generator=seed)
    drawn[::ignore_every] = ignore_index
    return drawn


CHECK = (
    case(7, 33),
    case(63, 1009, scale=30.0),
    case(5, 17, ignore_every=1),
    case(8, 17, ignore_index=5),
)


def bench(size: BenchSize) -> Case:
    """The logits of a batch."""
    return case(size.tokens, size.vocab)
