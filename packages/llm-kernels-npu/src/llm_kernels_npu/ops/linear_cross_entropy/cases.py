"""Calls of linear_cross_entropy to compare and to time."""

import math

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, label
from llm_kernels_npu.ops.cross_entropy.cases import targets
from llm_kernels_npu.signatures import Reduction


def case(
    rows: int,
    hidden: int,
    vocab: int,
    *,
    ignore_every: int = 3,
    ignore_index: int = -100,
    reduction: Reduction = "none",
    chunk_rows: int | None = None,
    is_frozen: bool = False,
) -> Case:
    """Hidden states [N, H] and an output layer [V, H]; every n-th target is the ignored one.

    A frozen output layer takes no gradient.
    """

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(rows, hidden, generator=seed)
        weight = torch.randn(vocab, hidden, generator=seed) / math.sqrt(hidden)
        drawn = targets(
            rows, vocab, ignore_every=ignore_every, ignore_index=ignore_index, seed=seed
        )
        return x, weight, drawn

    options: dict[str, int | str | None] = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "chunk_rows": chunk_rows,
    }
    unusual = {key: value for key, value in options.items() if value not in (-100, "none", None)}
    name = label((rows, hidden, vocab), ignore_every=ignore_every, **unusual)
    return Case(
        name=f"{name} frozen" if is_frozen else name,
        build=build,
        options=options,
        differentiable=1 if is_frozen else 2,
    )


CHECK = (
    case(7, 16, 33),
    case(130, 24, 211),
    case(5, 8, 17, ignore_every=1),
    case(8, 4, 17, ignore_index=5),
    case(7, 16, 33, reduction="sum"),
    case(300, 24, 211, reduction="sum"),
    case(5, 8, 17, ignore_every=1, reduction="sum"),
    case(70, 24, 211, chunk_rows=32),
    case(70, 24, 211, chunk_rows=32, is_frozen=True),
)


def bench(size: BenchSize) -> Case:
    """The output layer of a batch, as training calls it."""
    return case(size.tokens, size.hidden, size.vocab, reduction="sum")
