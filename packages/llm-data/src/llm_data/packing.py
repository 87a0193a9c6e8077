"""Which samples share a row.

No sample can be told from another of its length, so all work is on counts of lengths and for
many rows at a time: 1 M samples take a few thousand steps.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Near enough to the least number of rows there can be: 1 row in 1000 more.
_ENOUGH = 1000
# Each length begins a tenth of its rows in a round, so that the mix of lengths left stays alike.
_ROUNDS = 10
# Units a row is cut into where rows are filled exactly.
_UNITS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Packs:
    """Rows of samples: row i is `order[ends[i - 1]:ends[i]]`, the first from 0.

    order: int64 [samples], numbers of samples, row after row, ascending within a row.
    ends: int64 [rows], ascending. Rows are in the order of their first samples.
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ends)


def pack(lengths: NDArray[np.int32], capacity: int) -> Packs:
    """Rows of at most `capacity` tokens that hold every sample once, whole.

    Never more rows than best-fit decreasing. Where that leaves room, rows are first filled to the
    last token with lengths that are plentiful, and best-fit decreasing packs the rest. Equal
    arguments give equal rows. A length below 1 or above `capacity` is a ValueError.
    """
    _check(lengths, capacity)
    least = -(-int(lengths.sum(dtype=np.int64)) // capacity)
    plans: list[_Plan] = []
    for plan in _plans(lengths, capacity):
        plans.append(plan)
        if plan.num_rows - least <= least // _ENOUGH:
            break
    return _in_order(_rows_of_samples(min(plans, key=lambda plan: plan.num_rows)))


class _Placed(NamedTuple):
    """`each` samples of one length go into each of `rows` rows from `start` on."""

    length: int
    start: int
    rows: int
    each: int


class _Plan:
    """Rows opened so far and what goes into them; `lengths` are in the plan's own unit."""

    def __init__(self, lengths: NDArray[np.int32]) -> None:
        self.lengths = lengths
        self.num_rows = 0
        self.placed: list[_Placed] = []

    def open(self, rows: int) -> int:
        """The number of the first of `rows` new rows."""
        self.num_rows += rows
        return self.num_rows - rows


class _Room:
    """Rows that are not full, by the room they have left, as runs of equal rows."""

    def __init__(self) -> None:
        self._runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._rooms: list[int] = []

    def add(self, room: int, *, start: int, rows: int) -> None:
        """Rows from `start` on have `room` tokens left."""
        if room and rows:
            if not self._runs[room]:
                insort(self._rooms, room)
            self._runs[room].append((start, rows))

    def take(self, length: int) -> tuple[int, int, int] | None:
        """Room, start and rows of a run with the least room for `length`; None if there is none."""
        at = bisect_left(self._rooms, length)
        if at == len(self._rooms):
            return None
        room = self._rooms[at]
        start, rows = self._runs[room].pop()
        if not self._runs[room]:
            del self._rooms[at]
        return room, start, rows


def _check(lengths: NDArray[np.int32], capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"capacity {capacity}, want at least 1")
    bad = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(bad):
        at = int(bad[0])
        raise ValueError(f"sample {at} has {lengths[at]} tokens, want 1 to {capacity}")


def _plans(lengths: NDArray[np.int32], capacity: int) -> Iterator[_Plan]:
    """Best-fit decreasing, then with rows filled exactly before it.

    Lengths a little above 5/12 of a row go in pairs, or three could not average a third.
    """
    yield _plan(lengths, capacity, longest_exact=0)
    # Counted in units of several tokens, rounded up, the work is bounded for any capacity. A row
    # may end in part of a unit: what reaches into it has the row to itself.
    unit = max(1, capacity // _UNITS)
    room = capacity // unit
    units = np.minimum(-(-lengths // unit), room)
    yield _plan(units, room, longest_exact=room)
    yield _plan(units, room, longest_exact=5 * room // 12)


def _plan(lengths: NDArray[np.int32], capacity: int, *, longest_exact: int) -> _Plan:
    plan = _Plan(lengths)
    counts = np.bincount(lengths, minlength=capacity + 1)
    _fill_exactly(plan, counts[: longest_exact + 1], capacity)
    _fit_best(plan, counts, capacity)
    return plan


def _fit_best(plan: _Plan, counts: NDArray[np.int64], capacity: int) -> None:
    """Best-fit decreasing: the longest first, each into the fullest row that has room."""
    space = _Room()
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            found = space.take(length)
            if found is None:
                rows = -(-left // (capacity // length))
                found = capacity, plan.open(rows), rows
            left -= _fill_run(plan, space, found, length=length, samples=left)


def _fill_run(
    plan: _Plan, space: _Room, run: tuple[int, int, int], *, length: int, samples: int
) -> int:
    """Put samples of one length into a run; how many went in.

    A row that took one and has room for another is then the fullest with room for it. So a row
    takes as many as it can before the next one does.
    """
    room, start, rows = run
    each = room // length
    full = min(rows, samples // each)
    last = samples - full * each if full < rows else 0
    touched = start
    for count, of_each in ((full, each), (1, last)):
        if count and of_each:
            plan.placed.append(_Placed(length, touched, count, of_each))
            space.add(room - of_each * length, start=touched, rows=count)
            touched += count
    space.add(room, start=touched, rows=start + rows - touched)
    return full * each + last


def _fill_exactly(plan: _Plan, counts: NDArray[np.int64], capacity: int) -> None:
    """Fill rows to the last token and take their samples out of `counts`."""
    # Lengths above a half need the short ones most, so all of them come first.
    quota = counts.copy()
    quota[: capacity // 2 + 1] = 0
    _fill_round(plan, counts, quota, capacity)
    for done in range(_ROUNDS):
        _fill_round(plan, counts, -(-counts // (_ROUNDS - done)), capacity)


def _fill_round(
    plan: _Plan, counts: NDArray[np.int64], quota: NDArray[np.int64], capacity: int
) -> None:
    """Rows that begin with up to `quota` samples of each length, the longest lengths first."""
    mean = float(counts @ np.arange(len(counts))) / max(1, int(counts.sum()))
    for length in np.flatnonzero(quota)[::-1].tolist():
        left = min(int(quota[length]), int(counts[length]))
        while left:
            counts[length] -= left
            others = _others(counts, capacity - length, mean)
            rows = 0 if others is None else min([left, *_rows_each(counts, others)])
            counts[length] += left - rows
            if others is None or not rows:
                break
            start = plan.open(rows)
            plan.placed.append(_Placed(length, start, rows, 1))
            for other, each in others.items():
                plan.placed.append(_Placed(other, start, rows, each))
                counts[other] -= each * rows
            left = min(left - rows, int(counts[length]))


def _others(counts: NDArray[np.int64], room: int, mean: float) -> Counter[int] | None:
    """How many of which lengths sum to `room`: of a few choices, the one for the most rows.

    All but the last two are of the commonest length, the last two any that make the sum.
    """
    if not room:
        return Counter()
    choices = [Counter([room])] if room < len(counts) else []
    near = round(room / mean)
    for number in range(max(2, near - 1), near + 2):
        commonest = int(counts[: room // (number - 1)].argmax()) if number > 2 else 0
        pair = _pair(counts, room - commonest * (number - 2))
        if pair is not None:
            choices.append(Counter({commonest: number - 2} if number > 2 else {}) + Counter(pair))
    return max(choices, key=lambda others: min(_rows_each(counts, others)), default=None)


def _pair(counts: NDArray[np.int64], room: int) -> tuple[int, int] | None:
    """Two lengths that sum to `room`, of which the scarcer is as plentiful as can be."""
    half, least = room // 2, max(1, room - len(counts) + 1)
    if least > half:
        return None
    rows = np.minimum(counts[least : half + 1], counts[room - half : room - least + 1][::-1])
    if 2 * half == room:
        rows[-1] //= 2
    shorter = least + int(rows.argmax())
    return shorter, room - shorter


def _rows_each(counts: NDArray[np.int64], others: Counter[int]) -> list[int]:
    """Rows that the samples of each length allow."""
    return [int(counts[length]) // each for length, each in others.items()]


def _rows_of_samples(plan: _Plan) -> NDArray[np.int64]:
    """The row of each sample; equal lengths are taken in the order of the input."""
    # What is placed first takes the first samples: by falling length, then as placed.
    table = np.array(plan.placed, dtype=np.int64).reshape(-1, len(_Placed._fields))
    table = table[np.argsort(-table[:, 0], kind="stable")]
    _, starts, rows, each = table.T
    sizes = rows * each
    within = np.arange(len(plan.lengths)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    row_of = np.empty(len(plan.lengths), dtype=np.int64)
    by_length = np.argsort(-plan.lengths, kind="stable")
    row_of[by_length] = np.repeat(starts, sizes) + within // np.repeat(each, sizes)
    return row_of


def _in_order(row_of: NDArray[np.int64]) -> Packs:
    """Samples by row, rows by their first sample."""
    sizes = np.bincount(row_of)
    first = np.full(len(sizes), len(row_of))
    np.minimum.at(first, row_of, np.arange(len(row_of)))
    by_first = np.argsort(first)
    rank = np.empty_like(by_first)
    rank[by_first] = np.arange(len(by_first))
    return Packs(
        order=np.argsort(rank[row_of], kind="stable"),
        ends=np.cumsum(sizes[by_first], dtype=np.int64),
    )
