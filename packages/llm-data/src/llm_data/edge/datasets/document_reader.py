"""Documents of pairs as stretches of mapped bytes, without copies and without growing memory."""

import mmap
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_data.blending import Draws, Numbers
from llm_data.edge.durable import with_suffix
from llm_data.errors import FormatError
from llm_data.formats.indexed import Index, unpack_index

# Pairs held open at once, of each column. More than that are opened again when their turn comes.
_MOST_OPEN = 64
# Pages of mapped files count as ours until they are given back.
_RELEASE_BYTES = 32 << 20
_BLOCK_BYTES = 4 << 20


class Spans(NamedTuple):
    """D documents of one pair: bytes [start, end) of each, its sequences, and their lengths."""

    starts: Numbers
    ends: Numbers
    sizes: Numbers
    lengths: NDArray[np.int32]


class PairReader:
    """One pair, mapped. Raises FormatError for tables that contradict themselves or the tokens."""

    def __init__(self, stem: Path) -> None:
        self._name = str(stem)
        self._index_map = _mapped(with_suffix(stem, ".idx"))
        self._tokens_map = _mapped(with_suffix(stem, ".bin"))
        view = memoryview(self._index_map) if self._index_map else memoryview(b"")
        self.index: Index = unpack_index(view, where=f"{stem}.idx")
        self.tokens = memoryview(self._tokens_map) if self._tokens_map else memoryview(b"")
        if len(self.tokens) != self.index.bin_bytes:
            raise FormatError(
                f"{stem}.bin: {len(self.tokens)} bytes, but {stem.name}.idx wants "
                f"{self.index.bin_bytes}"
            )

    def spans(self, documents: Numbers) -> Spans:
        """Where the documents lie; the tables are checked on the way."""
        index, width = self.index, self.index.dtype.itemsize
        firsts, lasts = index.documents[documents], index.documents[documents + 1]
        sizes = lasts - firsts
        if (sizes < 0).any() or (firsts < 0).any() or (lasts > index.num_sequences).any():
            raise FormatError(f"{self._name}.idx: document indices run backwards or out of range")
        if (sizes == 1).all():
            lengths = index.lengths[firsts]
            starts = index.pointers[firsts]
            ends = starts + lengths.astype(np.int64) * width
        else:
            lengths, starts, ends = self._many(firsts, lasts, sizes)
        if (lengths < 0).any() or (starts < 0).any() or (ends > len(self.tokens)).any():
            raise FormatError(f"{self._name}.idx: a sequence lies outside {self._name}.bin")
        return Spans(starts, ends, sizes, lengths)

    def release(self) -> None:
        """Give back the pages that were read; they stay in the system's cache."""
        for map_ in (self._index_map, self._tokens_map):
            if map_ is not None and hasattr(mmap, "MADV_DONTNEED"):
                map_.madvise(mmap.MADV_DONTNEED)

    def _many(
        self, firsts: Numbers, lasts: Numbers, sizes: Numbers
    ) -> tuple[NDArray[np.int32], Numbers, Numbers]:
        """Lengths, starts and ends of documents that are not one sequence each."""
        index, width = self.index, self.index.dtype.itemsize
        before = np.concatenate(([0], np.cumsum(sizes)))
        sequences = np.repeat(firsts - before[:-1], sizes) + np.arange(before[-1])
        lengths = index.lengths[sequences]
        tokens = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        spans = (tokens[before[1:]] - tokens[before[:-1]]) * width
        holds = sizes > 0
        starts, ends = np.zeros_like(firsts), np.zeros_like(firsts)
        starts[holds] = index.pointers[firsts[holds]]
        last = lasts[holds] - 1
        ends[holds] = index.pointers[last] + index.lengths[last].astype(np.int64) * width
        if (ends - starts != spans).any():
            raise FormatError(f"{self._name}.idx: sequences of a document must lie end to end")
        return lengths, starts, ends


class _Runs(NamedTuple):
    """Stretches of bytes [start, end) in the tokens of numbered datasets."""

    datasets: NDArray[np.integer]
    starts: Numbers
    ends: Numbers


class Gathered(NamedTuple):
    """Documents of several pairs in the order asked for: tables, then the bytes in blocks."""

    lengths: NDArray[np.int32]
    sizes: NDArray[np.int32]
    blocks: Iterator[bytes | memoryview]


class ColumnReader:
    """One column of several datasets."""

    def __init__(self, stems: Sequence[Path]) -> None:
        self._stems = stems
        self._open: OrderedDict[int, PairReader] = OrderedDict()

    def gather(self, draws: Draws) -> Gathered:
        """The documents drawn. Take all blocks before the next call."""
        datasets = draws.datasets
        count = len(datasets)
        starts, ends, sizes = (np.empty(count, dtype=np.int64) for _ in range(3))
        found: list[tuple[NDArray[np.int64], Spans]] = []
        views: dict[int, memoryview] = {}
        for dataset in np.unique(datasets):
            reader = self._reader(int(dataset))
            here = np.flatnonzero(datasets == dataset)
            spans = reader.spans(draws.documents[here])
            starts[here], ends[here], sizes[here] = spans.starts, spans.ends, spans.sizes
            found.append((here, spans))
            views[int(dataset)] = reader.tokens
        lengths = _scattered(found, sizes)
        return Gathered(
            lengths=lengths,
            sizes=sizes.astype(np.int32),
            blocks=self._blocks(_joined_runs(datasets, starts, ends), views),
        )

    def _reader(self, dataset: int) -> PairReader:
        reader = self._open.pop(dataset, None) or PairReader(self._stems[dataset])
        self._open[dataset] = reader
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return reader

    def _blocks(self, runs: _Runs, views: dict[int, memoryview]) -> Iterator[bytes | memoryview]:
        """Small runs are joined, large ones cut: a write is worth its call, and never large."""
        mapped_bytes = 0
        for group in _grouped(runs):
            datasets, starts, ends = (part.tolist() for part in group)
            if len(starts) > 1:
                pieces = zip(datasets, starts, ends, strict=True)
                yield b"".join([views[dataset][start:end] for dataset, start, end in pieces])
                mapped_bytes += sum(ends) - sum(starts)
            else:
                view = views[datasets[0]]
                for first in range(starts[0], ends[0], _BLOCK_BYTES):
                    yield view[first : min(ends[0], first + _BLOCK_BYTES)]
                    mapped_bytes = self._released(mapped_bytes + _BLOCK_BYTES)
            mapped_bytes = self._released(mapped_bytes)
        self._release()

    def _released(self, mapped_bytes: int) -> int:
        """What is still mapped, after giving pages back if that is much."""
        if mapped_bytes < _RELEASE_BYTES:
            return mapped_bytes
        self._release()
        return 0

    def _release(self) -> None:
        for reader in self._open.values():
            reader.release()


def _joined_runs(datasets: NDArray[np.integer], starts: Numbers, ends: Numbers) -> _Runs:
    """Bytes that lie end to end, as one run; empty documents are no bytes."""
    holds = ends > starts
    datasets, starts, ends = datasets[holds], starts[holds], ends[holds]
    if not len(starts):
        return _Runs(datasets, starts, ends)
    breaks = (starts[1:] != ends[:-1]) | (datasets[1:] != datasets[:-1])
    firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    lasts = np.concatenate((firsts[1:], [len(starts)])) - 1
    return _Runs(datasets[firsts], starts[firsts], ends[lasts])


def _grouped(runs: _Runs) -> Iterator[_Runs]:
    """About a block of runs at a time; one that is larger than a block stands alone."""
    if not len(runs.starts):
        return
    sizes = runs.ends - runs.starts
    numbers = np.cumsum(sizes) // _BLOCK_BYTES
    is_large = sizes > _BLOCK_BYTES
    breaks = (numbers[1:] != numbers[:-1]) | is_large[1:] | is_large[:-1]
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(sizes)]
    for first, last in pairwise(edges):
        here = slice(first, last)
        yield _Runs(runs.datasets[here], runs.starts[here], runs.ends[here])


def _scattered(
    found: Sequence[tuple[NDArray[np.int64], Spans]], sizes: Numbers
) -> NDArray[np.int32]:
    """The lengths of every document's sequences, document after document."""
    if len(found) == 1:
        return found[0][1].lengths
    before = np.concatenate(([0], np.cumsum(sizes)))
    lengths = np.empty(int(before[-1]), dtype=np.int32)
    for here, spans in found:
        own = np.concatenate(([0], np.cumsum(spans.sizes)))
        places = np.repeat(before[here] - own[:-1], spans.sizes) + np.arange(own[-1])
        lengths[places] = spans.lengths
    return lengths


def _mapped(path: Path) -> mmap.mmap | None:
    """The file, mapped; None for an empty one, which cannot be."""
    with path.open("rb") as stream:
        if not path.stat().st_size:
            return None
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
