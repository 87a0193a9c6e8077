"""The packing half of a run: samples of any length in, rows of one length out.

Samples stand in spools of their own. A window of them is packed by lengths alone; then its rows
are gathered out of the mapped spools. After each window the run can be killed.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llm_data.edge.columns import Columns
from llm_data.edge.planning import Plan, Row
from llm_data.edge.progress import Progress
from llm_data.edge.run_folder import PackState, RunFolder, RunState
from llm_data.edge.spool import LENGTHS_FILE, TOKENS_FILE
from llm_data.encode import EncodedColumn
from llm_data.formats.sample_manifest import IGNORED_LABEL
from llm_data.packing import Packs, pack

# What one window may hold: all of it may be mapped at once.
WINDOW_SAMPLES = 1_000_000
WINDOW_TOKENS = 32 << 20
WINDOW_ROWS = 256

_BLOCK_TOKENS = 1 << 20


def pack_windows(
    plan: Plan, folder: RunFolder, state: RunState, *, progress: Progress
) -> Iterator[RunState]:
    """The state after each window of samples, its rows on the disk."""
    assert plan.row is not None
    samples = _Samples(folder, plan)
    columns = Columns(folder, plan.published, marks=state.packed.marks)
    with closing(columns):
        while state.packed.samples < samples.count:
            first = state.packed.samples
            end = samples.window_end(first)
            for rows in _rows_of(samples.window(first, end), plan.row):
                columns.append(rows, sizes=np.ones(len(rows[0].lengths) // 4, "<i4").tobytes())
            state = replace(state, packed=PackState(samples=end, marks=columns.mark()))
            note = f"{end:,} samples in {state.packed.marks['input_ids'].num_documents:,} rows"
            progress.update(done=end, total=samples.count, note=note)
            yield state


class _Window:
    """Consecutive samples: their lengths and, flat, their ids and labels."""

    def __init__(
        self, lengths: NDArray[np.int32], ids: NDArray[np.integer], labels: NDArray[np.integer]
    ) -> None:
        self.lengths = lengths
        self.ids = ids
        self.labels = labels
        self.starts = np.cumsum(lengths, dtype=np.int64) - lengths


class _Samples:
    """The spooled samples, mapped a window at a time."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        assert plan.row is not None
        ids, labels = plan.spooled
        self._ids = (folder.column(ids.name) / TOKENS_FILE, np.dtype(ids.dtype))
        self._labels = (folder.column(labels.name) / TOKENS_FILE, np.dtype(labels.dtype))
        self._lengths_path = folder.column(ids.name) / LENGTHS_FILE
        self.count = self._lengths_path.stat().st_size // 4
        self._limit = max(WINDOW_ROWS * plan.row.length, WINDOW_TOKENS)
        self._token = 0
        self._sample = 0

    def window_end(self, first: int) -> int:
        """Where the window that begins with a sample ends: the same for any kills."""
        ends = np.cumsum(self._lengths(first, WINDOW_SAMPLES), dtype=np.int64)
        return first + max(1, int(np.searchsorted(ends, self._limit, side="right")))

    def window(self, first: int, end: int) -> _Window:
        """Samples `first` to `end`."""
        lengths = self._lengths(first, end - first)
        start, size = self._tokens_before(first), int(lengths.sum(dtype=np.int64))
        ids, labels = (
            np.memmap(path, dtype=dtype, mode="r", offset=start * dtype.itemsize, shape=(size,))
            for path, dtype in (self._ids, self._labels)
        )
        return _Window(lengths, ids, labels)

    def _tokens_before(self, sample: int) -> int:
        """Tokens in the samples before one; asked in rising order."""
        while self._sample < sample:
            block = self._lengths(self._sample, min(WINDOW_SAMPLES, sample - self._sample))
            self._token += int(block.sum(dtype=np.int64))
            self._sample += len(block)
        return self._token

    def _lengths(self, first: int, count: int) -> NDArray[np.int32]:
        return np.fromfile(self._lengths_path, dtype="<i4", count=count, offset=first * 4)


def _rows_of(window: _Window, row: Row) -> Iterator[Sequence[EncodedColumn]]:
    """The window's rows in blocks: ids, ordinals, labels, and where each sample ends."""
    packs = pack(window.lengths, row.length)
    at_once = max(1, _BLOCK_TOKENS // row.length)
    for first in range(0, len(packs.ends), at_once):
        yield _block(window, packs, row, first, min(first + at_once, len(packs.ends)))


def _block(
    window: _Window, packs: Packs, row: Row, first: int, end: int
) -> Sequence[EncodedColumn]:
    begin = int(packs.ends[first - 1]) if first else 0
    order = packs.order[begin : packs.ends[end - 1]]
    in_row = np.diff(packs.ends[first:end], prepend=begin)
    lengths = window.lengths[order].astype(np.int64)
    before = np.cumsum(lengths) - lengths
    row_of = np.repeat(np.arange(end - first), in_row)
    first_of_row = np.cumsum(in_row) - in_row
    # Tokens from a row's start to a sample's start.
    place = before - before[first_of_row][row_of]
    source = np.arange(lengths.sum()) + np.repeat(window.starts[order] - before, lengths)
    target = source + np.repeat(row_of * row.length + place - window.starts[order], lengths)
    ordinal = np.arange(len(order)) - first_of_row[row_of] + 1
    size = (end - first) * row.length
    ids = _filled(size, window.ids.dtype, row.pad_id, target, window.ids[source])
    labels = _filled(size, window.labels.dtype, IGNORED_LABEL, target, window.labels[source])
    mask = _filled(size, window.ids.dtype, 0, target, np.repeat(ordinal, lengths))
    whole = np.full(end - first, row.length, dtype="<i4").tobytes()
    return (
        EncodedColumn(ids, whole),
        EncodedColumn(mask, whole),
        EncodedColumn(labels, whole),
        _boundaries(place + lengths, in_row),
    )


def _filled(
    size: int,
    dtype: np.dtype[np.generic],
    filling: int,
    target: NDArray[np.int64],
    values: NDArray[np.integer],
) -> bytes:
    flat = np.full(size, filling, dtype=dtype)
    flat[target] = values
    return flat.tobytes()


def _boundaries(ends: NDArray[np.int64], in_row: NDArray[np.int64]) -> EncodedColumn:
    """0 and the end of each sample, row by row."""
    found = np.insert(ends, np.cumsum(in_row) - in_row, 0).astype("<i4")
    return EncodedColumn(found.tobytes(), (in_row + 1).astype("<i4").tobytes())
