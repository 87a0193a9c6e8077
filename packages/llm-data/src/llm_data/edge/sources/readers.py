"""Readers of every input format, as streams of records that can begin anywhere."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType

from llm_data.edge.sources.csv_files import read_csv
from llm_data.edge.sources.inputs import InputFile, Kind
from llm_data.edge.sources.reading import Item, Job, Meter
from llm_data.edge.sources.table_files import read_arrow, read_parquet
from llm_data.edge.sources.text_files import read_json, read_lines, read_text
from llm_data.errors import DataError, FormatError
from llm_data.records import Batch, Lines, Part, Place, Reason, Record, Reject, end_of, items_of

__all__ = ["UNITS", "Item", "Meter", "read_batches", "read_records", "where"]

BATCH_RECORDS = 512
BATCH_BYTES = 192 << 10

# What one record is called in messages.
UNITS = MappingProxyType(
    {
        Kind.TEXT: "file",
        Kind.JSONL: "line",
        Kind.JSON: "element",
        Kind.CSV: "line",
        Kind.PARQUET: "row",
        Kind.ARROW: "row",
    }
)

_READERS: MappingProxyType[Kind, Callable[[Job], Iterator[Part]]] = MappingProxyType(
    {
        Kind.TEXT: read_text,
        Kind.JSONL: read_lines,
        Kind.JSON: read_json,
        Kind.CSV: read_csv,
        Kind.PARQUET: read_parquet,
        Kind.ARROW: read_arrow,
    }
)


def read_batches(
    files: Sequence[InputFile], *, key: str | None, start: Place | None, meter: Meter
) -> Iterator[Batch]:
    """All records after `start`, cut into batches by rules that no option changes.

    Of tables only the column `key` is read; without a key every row is a record in JSON.
    """
    parts: list[Part] = []
    payload_bytes = 0
    for part in _read_parts(files, key=key, start=start, meter=meter):
        parts.append(part)
        payload_bytes += _payload_bytes(part)
        if len(parts) >= BATCH_RECORDS or payload_bytes >= BATCH_BYTES:
            yield Batch(parts=parts, payload_bytes=payload_bytes)
            parts, payload_bytes = [], 0
    if parts:
        yield Batch(parts=parts, payload_bytes=payload_bytes)


def read_records(
    files: Sequence[InputFile], *, key: str | None, start: Place | None, meter: Meter
) -> Iterator[Item]:
    """The records of all files in order, from the one after `start`."""
    return items_of(_read_parts(files, key=key, start=start, meter=meter))


def _read_parts(
    files: Sequence[InputFile], *, key: str | None, start: Place | None, meter: Meter
) -> Iterator[Part]:
    first = start.source if start else 0
    meter.finished = sum(file.bytes for file in files[:first])
    for source, file in enumerate(files[first:], start=first):
        resumed = start if start and start.source == source else None
        meter.current = lambda: 0
        if resumed is None or resumed.resume is not None:
            yield from _read_file(
                Job(source=source, file=file, key=key, start=resumed, meter=meter)
            )
        meter.current = lambda: 0
        meter.finished += file.bytes


def where(files: Sequence[InputFile], place: Place) -> str:
    """A place in words, for messages."""
    file = files[place.source]
    unit = UNITS[file.kind]
    return str(file.path) if unit == "file" else f"{file.path}: {unit} {place.number}"


def _payload_bytes(part: Part) -> int:
    if isinstance(part, Lines):
        return len(part.data)
    return len(part.payload) if isinstance(part, Record) else 0


def _read_file(job: Job) -> Iterator[Part]:
    """The file's records; damage becomes a last Reject, a file that cannot be opened an error."""
    number = job.start.number if job.start else 0
    is_empty = not number
    try:
        for part in _READERS[job.file.kind](job):
            number = end_of(part).number
            is_empty = is_empty and isinstance(part, Lines) and part.is_blank
            yield part
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
        if is_empty:
            detail = "the file has no records"
            yield Reject(place=job.place(0, None), reason=Reason.EMPTY, detail=detail)


def _broken(job: Job, number: int, what: str) -> Reject:
    detail = f"the file is damaged after {UNITS[job.file.kind]} {number}: {what}"
    if number == 0 or job.file.kind is Kind.TEXT:
        detail = f"the file is damaged: {what}"
    return Reject(place=job.place(number + 1, None), reason=Reason.BROKEN_FILE, detail=detail)
