"""Which rows of sample datasets a run takes in which order, and how far each is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED_LABEL = -100
"""The label of a token that is not learned (tests/contracts/sample_dataset/SPEC.md)."""


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """Rows 0 … rows - 1, all of them in every epoch, in another order each when shuffled.

    It follows from the seed alone, so that neither ranks nor a resume change it.
    """

    rows: int
    seed: int
    is_shuffled: bool

    def row(self, index: int) -> int:
        """The row at place `index` of the order without end."""
        epoch, place = divmod(index, self.rows)
        return int(self.epoch(epoch)[place])

    def epoch(self, number: int) -> np.ndarray:
        """Every row once [rows]."""
        if not self.is_shuffled:
            return np.arange(self.rows)
        return np.random.default_rng((self.seed, number)).permutation(self.rows)

    def total(self, lengths: np.ndarray, stop: int) -> int:
        """Sum of `lengths` [rows] over the first `stop` places."""
        epochs, places = divmod(stop, self.rows)
        return epochs * int(lengths.sum()) + int(lengths[self.epoch(epochs)[:places]].sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """How long sequences become: a multiple of `multiple`, at most `seq_length`.

    Micro-batches that exchange tensors of one shape, those of one step, are padded alike when
    `is_by_step`: pipeline stages and dispatchers that gather need it.
    """

    multiple: int
    seq_length: int
    is_by_step: bool

    def padded(self, lengths: Sequence[int]) -> int:
        """Tokens that the longest of `lengths` is padded to."""
        return min(-(-max(lengths) // self.multiple) * self.multiple, self.seq_length)


def positions(length: int, starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of every sample in a row of `length` tokens, what follows the last included."""
    ends = [*starts[1:], length]
    return ((start, stop) for start, stop in zip(starts, ends, strict=True) if stop > start)
