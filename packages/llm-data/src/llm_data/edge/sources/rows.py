"""Rows of Arrow tables as payloads of records: one column's bytes, or whole rows as JSON."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import orjson

from llm_data.edge.sources.reading import Item, Job
from llm_data.records import Place, Reason, Record, Reject, Shape

if TYPE_CHECKING:
    import pyarrow as pa

_SLICE_ROWS = 1024


class Flaw(NamedTuple):
    """Why a row gives no record, and what stood there."""

    reason: Reason
    detail: str
    raw: str | None


def row_item(job: Job, place: Place, value: bytes | Flaw) -> Item:
    """The record or the reject that a row's value is."""
    if isinstance(value, Flaw):
        return Reject(place=place, reason=value.reason, detail=value.detail, raw=value.raw)
    return Record(place, Shape.TEXT if job.key is not None else Shape.JSON, value)


def values_of(batch: "pa.RecordBatch", *, key: str | None) -> Iterator[bytes | Flaw]:
    """A value a row: the column's text undecoded, or without `key` the row as a JSON object.

    Raises pyarrow's ArrowInvalid if the batch's buffers contradict each other.
    """
    for first in range(0, batch.num_rows, _SLICE_ROWS):
        part = batch.slice(first, _SLICE_ROWS)
        yield from _rows(part) if key is None else _texts(part.column(key), key)


def _texts(column: "pa.Array", key: str) -> Iterable[bytes | Flaw]:
    column = _as_bytes(column)
    # Offsets of a damaged file point anywhere; reading them unchecked ends the process.
    column.validate(full=True)
    return [
        value if isinstance(value, bytes) else _wrong_type(key, value)
        for value in column.to_pylist()
    ]


def _as_bytes(column: "pa.Array") -> "pa.Array":
    """Strings as bytes, without a copy: one that is not UTF-8 is then its row's error alone."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column.validate(full=True)
        return _as_bytes(column.dictionary_decode())
    if pa.types.is_string(kind):
        return column.view(pa.binary())
    if pa.types.is_large_string(kind):
        return column.view(pa.large_binary())
    if pa.types.is_string_view(kind):
        return column.cast(pa.binary_view())
    return column


def _rows(batch: "pa.RecordBatch") -> Iterable[bytes | Flaw]:
    batch.validate()
    try:
        batch.validate(full=True)
        return _objects(batch)
    except (ValueError, TypeError, OverflowError, NotImplementedError):
        # One row's fault: find out whose.
        return [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row(row: "pa.RecordBatch") -> bytes | Flaw:
    try:
        row.validate(full=True)
        (value,) = _objects(row)
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
        is_utf8_error = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
        reason = Reason.INVALID_UTF8 if is_utf8_error else Reason.BROKEN_ROW
        return Flaw(reason, f"the row is not JSON: {error}", None)
    return value


def _objects(batch: "pa.RecordBatch") -> Sequence[bytes]:
    names = batch.schema.names
    columns = [column.to_pylist() for column in batch.columns]
    return [_dumped(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _dumped(row: dict[str, object]) -> bytes:
    return orjson.dumps(row, default=_said, option=orjson.OPT_PASSTHROUGH_DATETIME)


def _said(value: object) -> object:
    """What JSON has no word for: text for bytes that are text, dates and decimals written out.

    Other bytes become an object that says how many they were: no task takes it for a text.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes_without_text": len(value)}
    isoformat: Callable[[], str] | None = getattr(value, "isoformat", None)
    return isoformat() if isoformat else str(value)


def _wrong_type(key: str, value: object) -> Flaw:
    found = "null" if value is None else f"of type {type(value).__name__}"
    return Flaw(Reason.WRONG_TYPE, f"{key!r} is {found}, want a string", repr(value))
