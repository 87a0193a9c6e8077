"""Calls of vocab_parallel_cross_entropy to compare and to time: one rank, alone or of several."""

from dataclasses import replace

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, Option, label
from llm_kernels_npu.ops.cross_entropy import cases as whole


def case(
    rows: int, vocab: int, *, words: int | None = None, start: int = 0, scale: float = 1.0
) -> Case:
    """Logits [N, V] of a rank that holds V of `words` words, all unless said otherwise."""
    drawn = whole.case(rows, vocab, scale=scale)

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        logits, _ = drawn.build(seed)
        return logits, whole.targets(rows, words or vocab, ignore_every=3, seed=seed)

    options: dict[str, Option] = {
        "vocab_start": start,
        "all_reduce_max": _alone,
        "all_reduce_sum": _alone,
    }
    name = label((rows, vocab), words=words or vocab, start=start, scale=scale)
    return replace(drawn, name=name, build=build, options=options)


def _alone(x: Tensor) -> Tensor:
    """A reduction over one rank."""
    return x


CHECK = (case(7, 33), case(63, 101, scale=30.0), case(9, 16, words=48, start=16))


def bench(size: BenchSize) -> Case:
    """The logits of a batch on one of two ranks."""
    return case(size.tokens, size.vocab // 2, words=size.vocab)
