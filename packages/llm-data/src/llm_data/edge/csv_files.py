"""Reader of comma-separated values."""

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import orjson

from llm_data.edge.reading import Item, Job, metered, wrong_columns
from llm_data.edge.rows import Flaw, row_item, values_of
from llm_data.edge.streams import open_stream
from llm_data.errors import FormatError
from llm_data.records import Reason

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import csv as pacsv

# A row must fit in a block. The larger ones are for files where one does not.
CSV_BLOCK_BYTES = (8 << 20, 64 << 20, 512 << 20)

# A last row of our own: if a quote is never closed, it is not the last row that comes out.
_END = b"\x1eend of file\x1e"


class _Row(NamedTuple):
    number: int
    value: bytes | Flaw


def read_csv(job: Job) -> Iterator[Item]:
    """Rows under a header line; rows with a wrong number of fields are rejects in their place."""
    header = _header(job)
    if not header:
        return
    if wrong := wrong_columns(job, header):
        yield wrong
        return
    for number, value in _rows(job, header):
        yield row_item(job, job.place(number, number), value)


def _header(job: Job) -> list[str]:
    with open_stream(job.file.path) as source:
        text = io.TextIOWrapper(source.stream, encoding="utf-8-sig", errors="replace", newline="")
        try:
            return next(filter(None, csv.reader(text)), [])
        except csv.Error as error:
            raise FormatError(f"the header is no row of names: {error}") from None
        finally:
            text.detach()


def _rows(job: Job, header: Sequence[str]) -> Iterator[_Row]:
    """The rows after the job's mark."""
    import pyarrow as pa

    done = job.skip
    for block_bytes in CSV_BLOCK_BYTES:
        try:
            with metered(job) as source:
                for row in _parsed(job, source.stream, header, block_bytes):
                    if row.number > done:
                        done = row.number
                        yield row
            return
        except pa.ArrowInvalid:
            if block_bytes == CSV_BLOCK_BYTES[-1]:
                raise


def _parsed(job: Job, stream: BinaryIO, header: Sequence[str], block_bytes: int) -> Iterator[_Row]:
    import pyarrow as pa
    from pyarrow import csv as pacsv

    broken: deque[_Row] = deque()

    def keep(row: "pacsv.InvalidRow") -> str:
        # Arrow counts the header.
        broken.append(_Row(row.number - 1, _wrong_count(row)))
        return "skip"

    wanted = header if job.key is None else [job.key]
    ended = _Ended(stream, b"\n" + b",".join([_END] * len(header)) + b"\n")
    # Bytes, not strings: a row that is not UTF-8 is then that row's error alone.
    reader = pacsv.open_csv(
        cast("BinaryIO", ended),
        read_options=pacsv.ReadOptions(block_size=block_bytes, use_threads=False),
        parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=keep),
        convert_options=pacsv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())
        ),
    )
    yield from _closed(_merged(_values(reader, job.key), broken), header, job.key)


def _wrong_count(row: "pacsv.InvalidRow") -> Flaw:
    detail = f"{row.actual_columns} fields, want {row.expected_columns}"
    return Flaw(Reason.BROKEN_ROW, detail, row.text)


def _values(batches: "Iterable[pa.RecordBatch]", key: str | None) -> Iterator[bytes | Flaw]:
    import pyarrow as pa

    for batch in batches:
        if key is None:
            columns = [column.view(pa.string()) for column in batch.columns]
            batch = pa.record_batch(columns, names=batch.schema.names)
        yield from values_of(batch, key=key)


def _merged(values: Iterable[bytes | Flaw], broken: deque[_Row]) -> Iterator[_Row]:
    """Good rows with their numbers, and between them the broken ones met while parsing."""
    number = 0
    for value in values:
        number += 1
        while broken and broken[0].number == number:
            yield broken.popleft()
            number += 1
        yield _Row(number, value)
    yield from broken


def _closed(rows: Iterable[_Row], header: Sequence[str], key: str | None) -> Iterator[_Row]:
    """The rows but our own last; an error if the last is not ours."""
    row: _Row | None = None
    for following in rows:
        if row:
            yield row
        row = following
    end = _END if key is not None else orjson.dumps(dict.fromkeys(header, _END.decode()))
    if row and row.value != end:
        raise FormatError(f"the quote opened in row {row.number} is never closed")


class _Ended:
    """A stream with some bytes after its last; what Arrow asks of a file."""

    closed = False

    def __init__(self, stream: BinaryIO, end: bytes) -> None:
        self._stream = stream
        self._end = end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        if not block:
            block, self._end = self._end, b""
        return block
