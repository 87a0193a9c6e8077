"""In which order the documents of several datasets stand in one: pure, exact, in chunks.

An order is a stream of chunks of dataset numbers, int16. Which document of a dataset is meant
follows from how often it was drawn before, so a stream of any length needs no memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_data.errors import UsageError, listed

Numbers = NDArray[np.int64]
Picks = NDArray[np.int16]

# What an int16 can number; megatron-core has the same limit.
MOST_DATASETS = 32766
CHUNK = 1 << 16

# Blending runs this many stretches of its order side by side, each after a run-up.
_LANES = 512
_LANE_LENGTH = 8192
_RUN_UP = 1024
_BELOW_LANES = 4096

# How `datasets.interleave_datasets` draws: so many at once from numpy's default generator.
_DRAWN_AT_ONCE = 1000

_ROUNDS = 8
_UINT64 = (1 << 64) - 1


class Strategy(StrEnum):
    """How datasets are mixed; all but `blend` have the names and rules of MindSpeed-LLM."""

    BLEND = "blend"
    CONCAT = "concat"
    INTERLEAVE_UNDER = "interleave_under"
    INTERLEAVE_OVER = "interleave_over"


class Draws(NamedTuple):
    """Documents to take, in order: number of the dataset [N] and of the document in it [N]."""

    datasets: NDArray[np.integer]
    documents: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides an order. `sizes` are the documents of each dataset.

    `weights` are shares and need not sum to 1; None takes turns, and has no meaning in `blend`.
    `size` is the number of documents wanted, `blend` only. `seed` decides which dataset a random
    interleaving draws from. With `shuffle_seed` each pass over a dataset has an order of its own.
    """

    strategy: Strategy
    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    size: int | None = None
    seed: int = 1234
    shuffle_seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.sizes) <= MOST_DATASETS:
            raise UsageError(f"{len(self.sizes)} datasets, want 1 to {MOST_DATASETS}")
        if empty := [number for number, size in enumerate(self.sizes) if size < 1]:
            raise UsageError(f"datasets {listed(map(str, empty))} hold no document")
        if self.weights is not None:
            _check_weights(self.weights, count=len(self.sizes))
        if self.strategy is Strategy.BLEND and (self.weights is None or self.size is None):
            raise UsageError("a blend needs a weight for each dataset, and a size")
        if self.size is not None and self.size < 1:
            raise UsageError(f"{self.size} documents wanted, want ≥ 1")
        if self.strategy is Strategy.CONCAT and self.weights is not None:
            raise UsageError("concat takes every document once: it has no use for weights")

    def picks(self) -> Iterator[Picks]:
        """Numbers of datasets, in chunks of any size."""
        match self.strategy:
            case Strategy.BLEND:
                assert self.weights is not None
                assert self.size is not None
                return blend(normalized(self.weights), size=self.size)
            case Strategy.CONCAT:
                return concatenate(self.sizes)
            case Strategy.INTERLEAVE_UNDER | Strategy.INTERLEAVE_OVER:
                over = self.strategy is Strategy.INTERLEAVE_OVER
                if self.weights is None:
                    return take_turns(self.sizes, oversample=over)
                return interleave(self.weights, self.sizes, seed=self.seed, oversample=over)

    def draws(self) -> Iterator[Draws]:
        """The order, in chunks of at most `CHUNK` documents."""
        drawn = np.zeros(len(self.sizes), dtype=np.int64)
        for picks in _in_chunks(self.picks()):
            yield Draws(picks, self._documents(picks, drawn))

    def totals(self) -> Numbers:
        """How many documents come from each dataset."""
        total = np.zeros(len(self.sizes), dtype=np.int64)
        for picks in self.picks():
            total += np.bincount(picks, minlength=len(total))
        return total

    def _documents(self, picks: Picks, drawn: Numbers) -> Numbers:
        """The document each pick means; `drawn` counts earlier picks and is brought forward."""
        by_dataset = np.argsort(picks, kind="stable")
        counts = np.bincount(picks, minlength=len(drawn))
        documents = np.empty(len(picks), dtype=np.int64)
        end = 0
        for dataset in np.flatnonzero(counts):
            start, end = end, end + int(counts[dataset])
            first = int(drawn[dataset])
            numbers = np.arange(first, first + end - start, dtype=np.int64)
            documents[by_dataset[start:end]] = self._in_passes(int(dataset), numbers)
        drawn += counts
        return documents

    def _in_passes(self, dataset: int, numbers: Numbers) -> Numbers:
        size = self.sizes[dataset]
        passes, places = np.divmod(numbers, size)
        if self.shuffle_seed is None:
            return places
        documents = np.empty_like(places)
        for number in np.unique(passes):
            here = passes == number
            shuffle = Shuffle(size, seed=(self.shuffle_seed, dataset, int(number)))
            documents[here] = shuffle.documents(places[here])
        return documents


def normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights that sum to 1, rounded as megatron-core rounds them."""
    values = np.array(weights, dtype=np.float64)
    return tuple(map(float, values / np.sum(values)))


def blend(weights: Sequence[float], *, size: int) -> Iterator[Picks]:
    """`size` picks by megatron-core's rule: each time the dataset that lacks most of its share.

    Pick n goes to the first dataset with the largest `weights[i] * max(n, 1) - taken[i]`, in
    doubles. Source: `build_blending_indices` in `megatron/core/datasets/helpers.cpp`.

    The rule forgets: two runs of it that start with different counts soon take the same picks. So
    a long order is cut into stretches that run side by side from guessed counts, after a run-up.
    A stretch stands if its counts were those that the stretch before it ended with, else it is
    done again from there: the picks are exactly those of one long run.
    """
    shares = np.array(weights, dtype=np.float64)
    taken = np.zeros(len(shares), dtype=np.float64)
    first = 0
    while first < size:
        left = size - first
        if left < _BELOW_LANES:
            yield _one_by_one(shares, taken, first=first, count=left)
            return
        length = min(_LANE_LENGTH, -(-left // _LANES))
        starts = first + length * np.arange(min(_LANES, left // length), dtype=np.int64)
        stretches = _Stretches.run(shares, starts, length=length)
        for lane in range(len(starts)):
            if np.array_equal(stretches.before[lane], taken):
                taken = stretches.after[lane].copy()
                yield stretches.picks[lane]
            else:
                yield _one_by_one(shares, taken, first=int(starts[lane]), count=length)
        first += length * len(starts)


def concatenate(sizes: Sequence[int]) -> Iterator[Picks]:
    """Every document once, one dataset after the other."""
    for dataset, size in enumerate(sizes):
        for first in range(0, size, CHUNK):
            yield np.full(min(CHUNK, size - first), dataset, dtype=np.int16)


def take_turns(sizes: Sequence[int], *, oversample: bool) -> Iterator[Picks]:
    """Each dataset in turn until the shortest is used up, or with `oversample` the longest.

    Source: `datasets.interleave_datasets` without probabilities.
    """
    turn = np.arange(len(sizes), dtype=np.int16)
    rounds = max(sizes) if oversample else min(sizes)
    at_once = max(1, CHUNK // len(sizes))
    for first in range(0, rounds, at_once):
        yield np.tile(turn, min(at_once, rounds - first))


def interleave(
    weights: Sequence[float], sizes: Sequence[int], *, seed: int, oversample: bool
) -> Iterator[Picks]:
    """A random dataset each time, until one is used up, or with `oversample` all are.

    Source: `datasets.interleave_datasets` with probabilities, whose draws these are.
    """
    total = float(np.sum(np.array(weights, dtype=np.float64)))
    # Shares that are probabilities already stay as they are: the draws follow their last bit.
    chances = list(weights) if abs(total - 1) < 1e-8 else list(normalized(weights))
    generator = np.random.default_rng(seed)
    left = np.array(sizes, dtype=np.int64)
    while True:
        picks = generator.choice(len(sizes), size=_DRAWN_AT_ONCE, p=chances).astype(np.int16)
        counts = np.bincount(picks, minlength=len(left))
        running_out = (counts >= left) & (left > 0)
        done = (left <= counts).all() if oversample else running_out.any()
        if done:
            # The last document of a dataset is the one of its `left`-th pick here.
            ends = [
                int(np.flatnonzero(picks == dataset)[left[dataset] - 1])
                for dataset in np.flatnonzero(running_out)
            ]
            yield picks[: (max(ends) if oversample else min(ends)) + 1]
            return
        left = np.maximum(left - counts, 0)
        yield picks


class Shuffle:
    """A random order of `size` documents that takes no memory and is the same on every machine.

    A Feistel network over the bits of a number, repeated until the number is below `size`; its
    round function is the finaliser of splitmix64. `seed` may be one number or several.
    """

    def __init__(self, size: int, *, seed: int | tuple[int, ...]) -> None:
        bits = max(2, (size - 1).bit_length())
        self._size = size
        self._low_bits = bits // 2
        self._high_bits = bits - self._low_bits
        self._keys = _round_keys(seed if isinstance(seed, tuple) else (seed,))

    def documents(self, places: Numbers) -> Numbers:
        """The document at each place of the order."""
        return self._walk(places, self._keys, odd_first=False)

    def places(self, documents: Numbers) -> Numbers:
        """The place of each document: the inverse."""
        return self._walk(documents, self._keys[::-1], odd_first=True)

    def _walk(self, numbers: Numbers, keys: Sequence[int], *, odd_first: bool) -> Numbers:
        values = self._mix(numbers.astype(np.uint64), keys, odd_first=odd_first)
        while len(outside := np.flatnonzero(values >= self._size)):
            values[outside] = self._mix(values[outside], keys, odd_first=odd_first)
        return values.astype(np.int64)

    def _mix(
        self, values: NDArray[np.uint64], keys: Sequence[int], *, odd_first: bool
    ) -> NDArray[np.uint64]:
        high = values >> np.uint64(self._low_bits)
        low = values & np.uint64((1 << self._low_bits) - 1)
        for number, key in enumerate(keys):
            if (number % 2 == 0) != odd_first:
                high ^= _scrambled(low, key) >> np.uint64(64 - self._high_bits)
            else:
                low ^= _scrambled(high, key) >> np.uint64(64 - self._low_bits)
        return (high << np.uint64(self._low_bits)) | low


@dataclass(frozen=True, slots=True)
class _Stretches:
    """L stretches of a blend of D datasets.

    picks [L, length]; before, after [L, D]: what was taken of each dataset so far.
    """

    picks: Picks
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @classmethod
    def run(cls, shares: NDArray[np.float64], starts: Numbers, *, length: int) -> "_Stretches":
        numbers = np.maximum(starts - _RUN_UP, 0)
        taken = _fair_counts(shares, numbers)
        lanes = np.arange(len(starts))
        errors = np.empty_like(taken)
        for _ in range(int((starts - numbers).max())):
            picks = _most_wanting(shares, numbers, taken, errors)
            moving = numbers < starts
            taken[lanes[moving], picks[moving]] += 1.0
            numbers = numbers + moving
        before = taken.copy()
        out = np.empty((length, len(starts)), dtype=np.int16)
        for step in range(length):
            picks = _most_wanting(shares, numbers, taken, errors)
            out[step] = picks
            taken[lanes, picks] += 1.0
            numbers = numbers + 1
        return cls(np.ascontiguousarray(out.T), before, taken)


def _most_wanting(
    shares: NDArray[np.float64],
    numbers: Numbers,
    taken: NDArray[np.float64],
    errors: NDArray[np.float64],
) -> Numbers:
    np.multiply(np.maximum(numbers, 1).astype(np.float64)[:, None], shares, out=errors)
    np.subtract(errors, taken, out=errors)
    return errors.argmax(axis=1)


def _fair_counts(shares: NDArray[np.float64], numbers: Numbers) -> NDArray[np.float64]:
    """Whole counts near `shares * number`, which sum to the number."""
    ideal = np.outer(numbers, shares)
    counts = np.floor(ideal)
    missing = (numbers - counts.sum(axis=1)).astype(np.int64)
    order = np.argsort(counts - ideal, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    return counts + (ranks < missing[:, None])


def _one_by_one(
    shares: NDArray[np.float64], taken: NDArray[np.float64], *, first: int, count: int
) -> Picks:
    """`count` picks from pick `first` on; `taken` is brought forward."""
    wanted, counts = shares.tolist(), taken.tolist()
    picks: list[int] = []
    for number in range(first, first + count):
        n = float(max(number, 1))
        errors = [share * n - have for share, have in zip(wanted, counts, strict=True)]
        pick = errors.index(max(errors))
        counts[pick] += 1.0
        picks.append(pick)
    taken[:] = counts
    return np.array(picks, dtype=np.int16)


def _in_chunks(pieces: Iterator[Picks]) -> Iterator[Picks]:
    """The same picks, `CHUNK` at a time: each chunk has a cost of its own."""
    waiting: list[Picks] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= CHUNK:
            joined = np.concatenate(waiting)
            whole = len(joined) - len(joined) % CHUNK
            yield from np.split(joined[:whole], range(CHUNK, whole, CHUNK))
            waiting = [joined[whole:]]
    if any(map(len, waiting)):
        yield np.concatenate(waiting)


def _check_weights(weights: Sequence[float], *, count: int) -> None:
    if len(weights) != count:
        raise UsageError(f"{len(weights)} weights for {count} datasets, want one each")
    if bad := [weight for weight in weights if not 0 < weight < float("inf")]:
        raise UsageError(f"weight {bad[0]}, want a number above 0")


def _round_keys(seeds: Sequence[int]) -> list[int]:
    state = 0
    for seed in seeds:
        state = _splitmix((state ^ (seed & _UINT64)) & _UINT64)
    keys: list[int] = []
    for _ in range(_ROUNDS):
        state = (state + 0x9E3779B97F4A7C15) & _UINT64
        keys.append(_splitmix(state))
    return keys


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _UINT64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _UINT64
    return value ^ (value >> 31)


def _scrambled(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """The finaliser over an array; products wrap, as they must."""
    mixed = values ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
