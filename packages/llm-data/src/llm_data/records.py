"""Records as readers find them, and the text in them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import NamedTuple, cast

import orjson

from llm_data.errors import did_you_mean, listed

BOM = b"\xef\xbb\xbf"


class Reason(StrEnum):
    """Why a record gave no document. Those in `COUNTED` are counted drops, the rest errors."""

    EMPTY = "empty"
    INVALID_JSON = "invalid_json"
    INVALID_UTF8 = "invalid_utf8"
    MISSING_KEY = "missing_key"
    WRONG_TYPE = "wrong_type"
    BROKEN_ROW = "broken_row"
    BROKEN_FILE = "broken_file"
    UNKNOWN_ROLE = "unknown_role"
    WRONG_TURNS = "wrong_turns"
    WRONG_VALUE = "wrong_value"
    NOT_IN_TEMPLATE = "not_in_template"
    UNPROVEN_MASK = "unproven_mask"
    NO_TARGET = "no_target"
    TOO_LONG = "too_long"


COUNTED = frozenset({Reason.EMPTY, Reason.TOO_LONG})


class RecordRefusedError(Exception):
    """A record gives no sample: why, and what was found and wanted."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Shape(StrEnum):
    """What a record's payload is."""

    JSON = "json"
    TEXT = "text"
    FILE = "file"


class Place(NamedTuple):
    """Where a record stands: its file's number in the run, its line, row or element from 1.

    `resume` is the reader's own mark of where the next record begins, None at the file's end.
    """

    source: int
    number: int
    resume: int | None


class Record(NamedTuple):
    """A record before anyone has looked inside."""

    place: Place
    shape: Shape
    payload: bytes | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A record without a document; `raw` is what stood there, None if the file says it all."""

    place: Place
    reason: Reason
    detail: str
    raw: str | None = None


class Lines(NamedTuple):
    """Whole lines of a file, a JSON value each, that nobody has cut apart: blank ones are none.

    `number` lines and `offset` bytes of the file stand before them; `end` is the last line's place.
    """

    number: int
    offset: int
    data: bytes
    end: Place

    @property
    def is_blank(self) -> bool:
        """Whether no line holds anything."""
        return not self.data.removeprefix(BOM).strip()

    def records(self) -> Iterator[Record]:
        """A record a line."""
        number, offset = self.number, self.offset
        for line in BytesIO(self.data):
            number += 1
            offset += len(line)
            payload = (line.removeprefix(BOM) if offset == len(line) else line).strip()
            if payload:
                yield Record(Place(self.end.source, number, offset), Shape.JSON, payload)


Part = Record | Reject | Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive records, small enough to hand to a worker, which cuts lines apart."""

    parts: Sequence[Part]
    payload_bytes: int

    def items(self) -> Iterator[Record | Reject]:
        """Each record."""
        return items_of(self.parts)

    @property
    def end(self) -> Place:
        """The last record's place."""
        return end_of(self.parts[-1])


def items_of(parts: Iterable[Part]) -> Iterator[Record | Reject]:
    """The records of all parts, one by one."""
    for part in parts:
        if isinstance(part, Lines):
            yield from part.records()
        else:
            yield part


def end_of(part: Part) -> Place:
    """The place of the last record in it."""
    return part.end if isinstance(part, Lines) else part.place


def text_of(record: Record, *, key: str) -> str | Reject:
    """The record's text; never empty."""
    text = _json_text(record, key=key) if record.shape is Shape.JSON else _decoded(record)
    if text == "":
        return Reject(place=record.place, reason=Reason.EMPTY, detail="the text is empty")
    return text


def object_of(record: Record, *, wanted: str = "an object") -> Mapping[str, object] | Reject:
    """The record's JSON object; `wanted` says in an error what it ought to be."""
    try:
        value: object = orjson.loads(record.payload)
    except orjson.JSONDecodeError as error:
        return _refused_json(record, error)
    if not isinstance(value, dict):
        return refused(record, Reason.WRONG_TYPE, f"found {kind_of(value)}, want {wanted}")
    return cast("Mapping[str, object]", value)


def refused(record: Record, reason: Reason, detail: str) -> Reject:
    """The record as a reject, with what stood there."""
    return Reject(place=record.place, reason=reason, detail=detail, raw=_shown(record.payload))


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _decoded(record: Record) -> str | Reject:
    if isinstance(record.payload, str):
        return record.payload
    try:
        return record.payload.decode()
    except UnicodeDecodeError as error:
        return Reject(
            place=record.place,
            reason=Reason.INVALID_UTF8,
            detail=_not_utf8(error),
            raw=None if record.shape is Shape.FILE else _shown(record.payload),
        )


def _json_text(record: Record, *, key: str) -> str | Reject:
    body = object_of(record, wanted=f"an object with the key {key!r}")
    if isinstance(body, Reject):
        return body
    if key not in body:
        detail = f"no key {key!r}; the record has {listed(body)}{did_you_mean(key, body)}"
        return refused(record, Reason.MISSING_KEY, detail)
    text = body[key]
    if not isinstance(text, str):
        detail = f"{key!r} is {kind_of(text)}, want a string"
        return refused(record, Reason.WRONG_TYPE, detail)
    return text


def _refused_json(record: Record, error: orjson.JSONDecodeError) -> Reject:
    try:
        if isinstance(record.payload, bytes):
            record.payload.decode()
    except UnicodeDecodeError as wrong:
        return refused(record, Reason.INVALID_UTF8, _not_utf8(wrong))
    detail = f"not JSON: {error.msg} at column {error.colno}"
    return refused(record, Reason.INVALID_JSON, detail)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"


def _shown(payload: bytes | str) -> str:
    return payload if isinstance(payload, str) else payload.decode(errors="backslashreplace")
