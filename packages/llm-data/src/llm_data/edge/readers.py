"""Readers of every input format, as streams of records that can begin anywhere."""

import csv
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

from llm_data.edge.inputs import InputFile, Kind
from llm_data.edge.streams import InputStream, advance, open_stream, seekable_file
from llm_data.errors import DataError, FormatError, did_you_mean, listed
from llm_data.formats.json_stream import split_values
from llm_data.records import Batch, Place, Reason, Record, Reject, Shape

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_RECORDS = 512
BATCH_BYTES = 256 << 10
CSV_BLOCK_BYTES = 8 << 20

_ROWS = 1024
_BOM = b"\xef\xbb\xbf"
_ARROW_FILE_MAGIC = b"ARROW1"

# What one record is called in messages.
UNITS = MappingProxyType(
    {
        Kind.TEXT: "file",
        Kind.JSONL: "line",
        Kind.JSON: "element",
        Kind.CSV: "row",
        Kind.PARQUET: "row",
        Kind.ARROW: "row",
    }
)


@dataclass(slots=True)
class Meter:
    """How far into the files on disk the readers have come, in bytes."""

    finished: int = 0
    current: Callable[[], int] = lambda: 0

    @property
    def bytes(self) -> int:
        """Bytes of files finished and of the one being read."""
        return self.finished + self.current()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One file to read from a mark on."""

    source: int
    file: InputFile
    key: str
    start: Place | None
    meter: Meter

    @property
    def skip(self) -> int:
        """The reader's mark, 0 at the beginning."""
        return (self.start.resume or 0) if self.start else 0

    def place(self, number: int, resume: int | None) -> Place:
        return Place(self.source, number, resume)


Item = Record | Reject


def read_batches(
    files: Sequence[InputFile], *, key: str, start: Place | None, meter: Meter
) -> Iterator[Batch]:
    """All records after `start`, cut into batches by rules that no option changes."""
    items: list[Item] = []
    payload_bytes = 0
    for item in read_records(files, key=key, start=start, meter=meter):
        items.append(item)
        payload_bytes += len(item.payload) if isinstance(item, Record) else 0
        if len(items) >= BATCH_RECORDS or payload_bytes >= BATCH_BYTES:
            yield Batch(items=items, payload_bytes=payload_bytes)
            items, payload_bytes = [], 0
    if items:
        yield Batch(items=items, payload_bytes=payload_bytes)


def read_records(
    files: Sequence[InputFile], *, key: str, start: Place | None, meter: Meter
) -> Iterator[Item]:
    """The records of all files in order, from the one after `start`."""
    first = start.source if start else 0
    meter.finished = sum(file.bytes for file in files[:first])
    for source, file in enumerate(files[first:], start=first):
        resumed = start if start and start.source == source else None
        meter.current = lambda: 0
        if resumed is None or resumed.resume is not None:
            yield from _read_file(
                _Job(source=source, file=file, key=key, start=resumed, meter=meter)
            )
        meter.current = lambda: 0
        meter.finished += file.bytes


def _read_file(job: _Job) -> Iterator[Item]:
    """The file's records; damage becomes a last Reject, a file that cannot be opened an error."""
    number = job.start.number if job.start else 0
    try:
        for item in _READERS[job.file.kind](job):
            number = item.place.number
            yield item
    except (EOFError, zlib.error, FormatError) as error:
        yield _broken(job, number, str(error))
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"{job.file.path}: {error.strerror}") from None
        yield _broken(job, number, str(error))
    except Exception as error:
        # Arrow's own errors, without importing Arrow for files that do not need it.
        if type(error).__module__ != "pyarrow.lib":
            raise
        yield _broken(job, number, str(error))
    else:
        if number == 0:
            detail = "the file has no records"
            yield Reject(place=job.place(0, None), reason=Reason.EMPTY, detail=detail)


def _broken(job: _Job, number: int, what: str) -> Reject:
    detail = f"the file is damaged after {UNITS[job.file.kind]} {number}: {what}"
    if job.file.kind is Kind.TEXT:
        detail = f"the file is damaged: {what}"
    return Reject(place=job.place(number + 1, None), reason=Reason.BROKEN_FILE, detail=detail)


def _read_text(job: _Job) -> Iterator[Item]:
    """The whole file as one document."""
    with _metered(job) as source:
        payload = source.stream.read().removeprefix(_BOM)
    yield Record(job.place(1, None), Shape.FILE, payload)


def _read_lines(job: _Job) -> Iterator[Item]:
    """One JSON value a line; blank lines are no records."""
    number = job.start.number if job.start else 0
    offset = job.skip
    with _metered(job) as source:
        advance(source.stream, to=offset)
        for line in source.stream:
            number += 1
            offset += len(line)
            payload = (line.removeprefix(_BOM) if offset == len(line) else line).strip()
            if payload:
                yield Record(job.place(number, offset), Shape.JSON, payload)


def _read_json(job: _Job) -> Iterator[Item]:
    """The elements of an array, or objects one after another."""
    with _metered(job) as source:
        values = split_values(source.stream.read, where="JSON")
        for number, payload in enumerate(islice(values, job.skip, None), start=job.skip + 1):
            yield Record(job.place(number, number), Shape.JSON, payload)


def _read_csv(job: _Job) -> Iterator[Item]:
    """Rows under a header line; rows with a wrong number of fields come before their block."""
    header = _csv_header(job)
    if not header:
        return
    if job.key not in header:
        yield _no_column(job, header)
        return
    with _metered(job) as source:
        items = _csv_items(job, source.stream)
        for number, item in enumerate(islice(items, job.skip, None), start=job.skip + 1):
            place = job.place(number, number)
            if isinstance(item, Reject):
                yield Reject(place=place, reason=item.reason, detail=item.detail, raw=item.raw)
            else:
                yield item._replace(place=place)


def _csv_header(job: _Job) -> list[str]:
    with open_stream(job.file.path) as source:
        text = io.TextIOWrapper(source.stream, encoding="utf-8-sig", errors="replace", newline="")
        header = next(csv.reader(text), [])
        text.detach()
        return header


def _csv_items(job: _Job, stream: BinaryIO) -> Iterator[Item]:
    import pyarrow as pa
    from pyarrow import csv as pacsv

    broken: list[Reject] = []
    nowhere = job.place(0, None)

    def keep(row: pacsv.InvalidRow) -> str:
        detail = f"{row.actual_columns} fields, want {row.expected_columns}"
        broken.append(Reject(place=nowhere, reason=Reason.BROKEN_ROW, detail=detail, raw=row.text))
        return "skip"

    # Bytes, not strings: a row that is not UTF-8 is then that row's error alone.
    reader = pacsv.open_csv(
        stream,
        read_options=pacsv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False),
        parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=keep),
        convert_options=pacsv.ConvertOptions(
            include_columns=[job.key], column_types={job.key: pa.binary()}
        ),
    )
    for batch in reader:
        yield from broken
        broken.clear()
        for value in _values(batch.column(0)):
            yield _row(job, nowhere, value)
    yield from broken


def _read_parquet(job: _Job) -> Iterator[Item]:
    from pyarrow import parquet

    with seekable_file(job.file.path) as stream, parquet.ParquetFile(stream) as file:
        if job.key not in file.schema_arrow.names:
            yield _no_column(job, file.schema_arrow.names)
            return
        number, total = job.skip, file.metadata.num_rows or 1
        job.meter.current = lambda: job.file.bytes * number // total
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > number:
                batches = file.iter_batches(_ROWS, row_groups=[group], columns=[job.key])
                values = (value for batch in batches for value in _values(batch.column(0)))
                for value in islice(values, number - first, None):
                    number += 1
                    yield _row(job, job.place(number, number), value)
            first += rows


def _read_arrow(job: _Job) -> Iterator[Item]:
    """Record batches of an IPC file, or of an IPC stream such as `datasets` saves."""
    from pyarrow import ipc

    with seekable_file(job.file.path) as stream:
        is_file = stream.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        stream.seek(0)
        reader = ipc.open_file(stream) if is_file else ipc.open_stream(stream)
        job.meter.current = stream.tell
        if job.key not in reader.schema.names:
            yield _no_column(job, reader.schema.names)
            return
        number = first = 0
        for batch in _record_batches(reader):
            if first + batch.num_rows > job.skip:
                skipped = max(0, job.skip - first)
                number = first + skipped
                for value in _values(batch.column(job.key).slice(skipped)):
                    number += 1
                    yield _row(job, job.place(number, number), value)
            first += batch.num_rows


def _record_batches(
    reader: "pa.RecordBatchFileReader | pa.RecordBatchStreamReader",
) -> "Iterator[pa.RecordBatch]":
    count = getattr(reader, "num_record_batches", None)
    if count is None:
        yield from reader
    else:
        yield from (reader.get_batch(number) for number in range(count))


def _values(column: "pa.Array") -> Iterator[object]:
    for first in range(0, len(column), _ROWS):
        yield from column.slice(first, _ROWS).to_pylist()


def _row(job: _Job, place: Place, value: object) -> Item:
    if isinstance(value, str | bytes):
        return Record(place, Shape.TEXT, value)
    found = "null" if value is None else f"of type {type(value).__name__}"
    detail = f"{job.key!r} is {found}, want a string"
    return Reject(place=place, reason=Reason.WRONG_TYPE, detail=detail, raw=repr(value))


def _no_column(job: _Job, names: Iterable[str]) -> Reject:
    every = list(names)
    detail = f"no column {job.key!r}; the file has {listed(every)}{did_you_mean(job.key, every)}"
    return Reject(place=job.place(1, None), reason=Reason.MISSING_KEY, detail=detail)


@contextmanager
def _metered(job: _Job) -> Iterator[InputStream]:
    """`open_stream` that tells the meter how far it is."""
    with open_stream(job.file.path) as source:
        job.meter.current = source.consumed
        try:
            yield source
        finally:
            job.meter.current = lambda: 0


_READERS: MappingProxyType[Kind, Callable[[_Job], Iterator[Item]]] = MappingProxyType(
    {
        Kind.TEXT: _read_text,
        Kind.JSONL: _read_lines,
        Kind.JSON: _read_json,
        Kind.CSV: _read_csv,
        Kind.PARQUET: _read_parquet,
        Kind.ARROW: _read_arrow,
    }
)
