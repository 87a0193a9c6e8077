"""Which rows of sample datasets a run takes in which order, and how far each is padded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Protocol

import numpy as np

IGNORED_LABEL = -100
"""The label of a token that is not learned (tests/contracts/sample_dataset/SPEC.md)."""

# Which rows are held out depends on their number alone: another train.seed has the same ones.
_HELD_OUT_SEED = 7919


class Order(Protocol):
    """An order of rows without end; it follows from rows and seed, never from ranks or a resume."""

    def row(self, index: int) -> int:
        """The row at place `index`."""
        ...

    def total(self, lengths: np.ndarray, stop: int) -> int:
        """Sum of `lengths` [rows] over the first `stop` places."""
        ...


class Share(StrEnum):
    """Which rows of a dataset are meant, where some are held out to evaluate on."""

    ALL = "all"
    REST = "rest"
    HELD_OUT = "held out"

    def chosen(self, rows: int, fraction: float) -> np.ndarray:
        """True for its rows [rows]; of two and more, `fraction` holds out one and leaves one."""
        if self is Share.ALL:
            return np.ones(rows, dtype=bool)
        count = min(max(round(fraction * rows), 1), rows - 1)
        held_out = np.zeros(rows, dtype=bool)
        held_out[np.random.default_rng((_HELD_OUT_SEED, rows)).permutation(rows)[:count]] = True
        return held_out if self is Share.HELD_OUT else ~held_out


@dataclass(slots=True)
class SampleOrder:
    """Rows 0 … rows - 1, all of them in every epoch, in another order each when shuffled.

    `stream` tells apart the orders of several datasets.
    """

    rows: int
    seed: int
    is_shuffled: bool
    stream: int | None = None
    _last: tuple[int, np.ndarray] | None = field(default=None, init=False, repr=False)

    def row(self, index: int) -> int:
        """The row at place `index` of the order without end."""
        epoch, place = divmod(index, self.rows)
        return int(self.epoch(epoch)[place])

    def epoch(self, number: int) -> np.ndarray:
        """Every row once [rows]."""
        if self._last is None or self._last[0] != number:
            self._last = (number, self._ordered(number))
        return self._last[1]

    def total(self, lengths: np.ndarray, stop: int) -> int:
        """Sum of `lengths` [rows] over the first `stop` places."""
        epochs, places = divmod(stop, self.rows)
        whole = epochs * int(lengths.sum())
        return whole + (int(lengths[self.epoch(epochs)[:places]].sum()) if places else 0)

    def _ordered(self, number: int) -> np.ndarray:
        if not self.is_shuffled:
            return np.arange(self.rows)
        streams = () if self.stream is None else (self.stream,)
        return np.random.default_rng((self.seed, number, *streams)).permutation(self.rows)


class BlendedOrder:
    """Rows of several datasets, drawn in proportion to weights, each dataset in epochs of its own.

    The rows of the datasets are numbered on, one dataset behind another. Draw k (from 0) of a
    dataset with share w of all weights is due at (k + ½) / w, and all draws are taken as they are
    due: of the first n places, each dataset has n · w of them, give or take fewer than the number
    of datasets.
    """

    def __init__(
        self, rows: Sequence[int], weights: Sequence[float], *, seed: int, is_shuffled: bool
    ) -> None:
        self.shares: np.ndarray = np.array(weights, dtype=np.float64) / sum(weights)
        self._starts = [0, *(int(end) for end in np.cumsum(rows))]
        self._orders = [
            SampleOrder(count, seed, is_shuffled, stream) for stream, count in enumerate(rows)
        ]
        self._grow(1 << 10)

    def row(self, index: int) -> int:
        """The row at place `index`."""
        self._reach(index + 1)
        part = int(self._parts[index])
        return self._starts[part] + self._orders[part].row(int(self._draws[index]))

    def total(self, lengths: np.ndarray, stop: int) -> int:
        """Sum of `lengths` [rows] over the first `stop` places."""
        return sum(
            order.total(lengths[start:end], drawn)
            for order, (start, end), drawn in zip(
                self._orders, pairwise(self._starts), self.drawn(stop), strict=True
            )
        )

    def drawn(self, stop: int) -> list[int]:
        """How many of the first `stop` places each dataset has."""
        self._reach(stop)
        return [int(np.searchsorted(places, stop)) for places in self._places]

    def _reach(self, stop: int) -> None:
        if stop > len(self._parts):
            self._grow(2 * stop)

    def _grow(self, horizon: int) -> None:
        """All draws that are due before `horizon`: a longer one begins with those of a shorter."""
        due = [_due(float(share), horizon) for share in self.shares]
        parts = np.repeat(np.arange(len(due)), [len(one) for one in due])
        # Stable: of draws due at once the dataset named first comes first.
        order = np.argsort(np.concatenate(due), kind="stable")
        self._parts = parts[order]
        self._draws = np.concatenate([np.arange(len(one)) for one in due])[order]
        self._places = [np.flatnonzero(self._parts == part) for part in range(len(due))]


def _due(share: float, horizon: int) -> np.ndarray:
    """When each draw of a dataset is due, those before `horizon`."""
    draws = np.arange(math.ceil(horizon * share) + 1)
    due: np.ndarray = (draws + 0.5) / share
    return due[due < horizon]


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
