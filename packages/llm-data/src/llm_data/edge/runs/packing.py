"""The packing half of a run: samples of any length in, rows of one length out.

Samples stand in spools of their own. A window of them is packed by lengths alone; then its rows
are read together from the spools. After each window the run can be killed.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_data.edge.console.progress import Progress
from llm_data.edge.datasets.spool import LENGTHS_FILE, TOKENS_FILE
from llm_data.edge.runs.columns import Columns
from llm_data.edge.runs.planning import Plan, Row
from llm_data.edge.runs.run_folder import PackState, RunFolder, RunState
from llm_data.encode import EncodedColumn
from llm_data.errors import DataError
from llm_data.formats.sample_manifest import IGNORED_LABEL
from llm_data.packing import pack

# What one window may hold. Only lengths are in memory, but its samples are read in any order.
WINDOW_SAMPLES = 1_000_000
WINDOW_TOKENS = 64 << 20
WINDOW_ROWS = 256

_BLOCK_TOKENS = 1 << 20


def pack_windows(
    plan: Plan, folder: RunFolder, state: RunState, *, progress: Progress
) -> Iterator[RunState]:
    """The state after each window of samples, its rows on the disk."""
    assert plan.row is not None
    columns = Columns(folder, plan.published, marks=state.packed.marks)
    with closing(_Samples(folder, plan)) as samples, closing(columns):
        while state.packed.samples < samples.count:
            first = state.packed.samples
            end = samples.window_end(first)
            for rows in _rows_of(samples, first, end, row=plan.row):
                columns.append(rows, sizes=np.ones(len(rows[0].lengths) // 4, "<i4").tobytes())
            state = replace(state, packed=PackState(samples=end, marks=columns.mark()))
            note = f"{end:,} samples in {state.packed.marks['input_ids'].num_documents:,} rows"
            progress.update(done=end, total=samples.count, note=note)
            yield state


class _Samples:
    """The spooled samples: their lengths, and their ids and labels by place."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        assert plan.row is not None
        ids, labels = plan.spooled
        self.ids = _Tokens(folder.column(ids.name) / TOKENS_FILE, np.dtype(ids.dtype))
        self.labels = _Tokens(folder.column(labels.name) / TOKENS_FILE, np.dtype(labels.dtype))
        self._lengths_path = folder.column(ids.name) / LENGTHS_FILE
        self.count = self._lengths_path.stat().st_size // 4
        self._limit = max(WINDOW_ROWS * plan.row.length, WINDOW_TOKENS)
        self._token = 0
        self._sample = 0

    def window_end(self, first: int) -> int:
        """Where the window that begins with a sample ends: the same for any kills."""
        ends = np.cumsum(self.lengths(first, WINDOW_SAMPLES), dtype=np.int64)
        return first + max(1, int(np.searchsorted(ends, self._limit, side="right")))

    def lengths(self, first: int, count: int) -> NDArray[np.int32]:
        """Tokens in each of so many samples."""
        return np.fromfile(self._lengths_path, dtype="<i4", count=count, offset=first * 4)

    def tokens_before(self, sample: int) -> int:
        """Tokens in the samples before one; asked in rising order."""
        while self._sample < sample:
            block = self.lengths(self._sample, min(WINDOW_SAMPLES, sample - self._sample))
            self._token += int(block.sum(dtype=np.int64))
            self._sample += len(block)
        return self._token

    def close(self) -> None:
        """Close the files."""
        self.ids.close()
        self.labels.close()


class _Tokens:
    """A spool's tokens, read where they are wanted: a map of them would count as our memory."""

    def __init__(self, path: Path, dtype: np.dtype[np.integer]) -> None:
        self._path = path
        self._stream = path.open("rb", buffering=0)
        self.dtype = dtype

    def rows(self, size: int, *, filling: int, pieces: "_Pieces") -> bytes:
        """So many tokens: the pieces at their places, `filling` elsewhere."""
        flat = np.full(size, filling, dtype=self.dtype)
        width, view = self.dtype.itemsize, flat.data.cast("B")
        ends = (pieces.targets + pieces.lengths) * width
        for source, target, end in zip(
            (pieces.sources * width).tolist(),
            (pieces.targets * width).tolist(),
            ends.tolist(),
            strict=True,
        ):
            self._stream.seek(source)
            if self._stream.readinto(view[target:end]) != end - target:
                raise DataError(f"{self._path}: cut short; --no-resume starts over")
        return flat.tobytes()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class _Pieces(NamedTuple):
    """Samples on their way into rows: where they are, where they go, how long. int64 [samples]."""

    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    lengths: NDArray[np.int64]


def _rows_of(
    samples: _Samples, first: int, end: int, *, row: Row
) -> Iterator[Sequence[EncodedColumn]]:
    """A window's rows in blocks: ids, ordinals, labels, and where each sample ends."""
    lengths = samples.lengths(first, end - first)
    starts = samples.tokens_before(first) + np.cumsum(lengths, dtype=np.int64) - lengths
    packs = pack(lengths, row.length)
    at_once = max(1, _BLOCK_TOKENS // row.length)
    begin = 0
    for number in range(0, len(packs.ends), at_once):
        ends = packs.ends[number : number + at_once]
        order = packs.order[begin : ends[-1]]
        in_row = np.diff(ends, prepend=begin)
        yield _block(samples, starts[order], lengths[order].astype(np.int64), in_row, row)
        begin = int(ends[-1])


def _block(
    samples: _Samples,
    sources: NDArray[np.int64],
    lengths: NDArray[np.int64],
    in_row: NDArray[np.int64],
    row: Row,
) -> Sequence[EncodedColumn]:
    """Rows of `in_row` samples each. sources, lengths: int64 [samples], in the order of rows."""
    row_of = np.repeat(np.arange(len(in_row)), in_row)
    heads = np.cumsum(in_row) - in_row
    before = np.cumsum(lengths) - lengths
    # Tokens from a row's start to a sample's start.
    places = before - before[heads][row_of]
    pieces = _Pieces(sources, row_of * row.length + places, lengths)
    size = len(in_row) * row.length
    mask = np.zeros(size, dtype=samples.ids.dtype)
    inside = np.arange(lengths.sum()) + np.repeat(pieces.targets - before, lengths)
    mask[inside] = np.repeat(np.arange(len(row_of)) - heads[row_of] + 1, lengths)
    whole = np.full(len(in_row), row.length, dtype="<i4").tobytes()
    ids = samples.ids.rows(size, filling=row.pad_id, pieces=pieces)
    labels = samples.labels.rows(size, filling=IGNORED_LABEL, pieces=pieces)
    return (
        EncodedColumn(ids, whole),
        EncodedColumn(mask.tobytes(), whole),
        EncodedColumn(labels, whole),
        _boundaries(places + lengths, in_row),
    )


def _boundaries(ends: NDArray[np.int64], in_row: NDArray[np.int64]) -> EncodedColumn:
    """0 and the end of each sample, row by row."""
    found = np.insert(ends, np.cumsum(in_row) - in_row, 0).astype("<i4")
    return EncodedColumn(found.tobytes(), (in_row + 1).astype("<i4").tobytes())
