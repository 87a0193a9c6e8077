"""Reader of comma-separated values.

Bytes are read as Latin-1, in which every byte is one character: lengths are then byte offsets, and
a row that is not UTF-8 is that row's error alone.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import orjson

from llm_data.edge.sources.reading import Item, Job, metered, wrong_columns
from llm_data.edge.sources.rows import Flaw, row_item
from llm_data.edge.sources.streams import advance, open_stream
from llm_data.errors import FormatError
from llm_data.records import BOM, Reason

# Beyond this a quote was surely never closed; what it swallows is held in memory.
FIELD_BYTES = 128 << 20

_ONE_BYTE_EACH = "latin-1"
_BOM = BOM.decode(_ONE_BYTE_EACH)
_END = "\x1eend of file\x1e"


class _Row(NamedTuple):
    """A row's fields, the line and the byte it begins at, and its lines."""

    fields: list[str]
    line: int
    offset: int
    lines: Sequence[str]


def read_csv(job: Job) -> Iterator[Item]:
    """Rows under a row of names; one with a wrong number of fields is a reject.

    A row's number is its first line's. Its mark is the byte it begins at: resuming reads it again.
    """
    line, offset = (job.start.number, job.skip) if job.start else (1, 0)
    with _long_fields():
        names = _header(job)
        if not names:
            return
        if wrong := wrong_columns(job, names):
            yield wrong
            return
        with metered(job) as source:
            advance(source.stream, to=offset)
            rows = _rows(source.stream, line=line, offset=offset)
            # The names, or what is done already.
            next(rows)
            for row in rows:
                place = job.place(row.line, row.offset)
                yield row_item(job, place, _value(row, names, job.key))


def _header(job: Job) -> list[str]:
    with open_stream(job.file.path) as source:
        row = next(_rows(source.stream, line=1, offset=0), None)
    return [_bytes(name).decode(errors="replace") for name in row.fields] if row else []


def _rows(stream: BinaryIO, *, line: int, offset: int) -> Iterator[_Row]:
    """The rows that are not blank, from where the stream stands."""
    text = io.TextIOWrapper(stream, encoding=_ONE_BYTE_EACH, newline="")
    taken: list[str] = []
    is_over = False

    def lines() -> Iterator[str]:
        nonlocal is_over
        for following in text:
            taken.append(following)
            yield following if offset else following.removeprefix(_BOM)
        is_over = True
        yield _END

    try:
        for fields in csv.reader(lines()):
            if is_over:
                # A row of our own, unless an open quote has swallowed it.
                if fields != [_END]:
                    raise FormatError(f"the quote opened in line {line} is never closed")
                return
            if fields:
                yield _Row(fields, line, offset, list(taken))
            line += len(taken)
            offset += sum(map(len, taken))
            taken.clear()
    except csv.Error as error:
        raise FormatError(f"line {line}: {error}") from None
    finally:
        text.detach()


def _value(row: _Row, names: Sequence[str], key: str | None) -> bytes | Flaw:
    if len(row.fields) != len(names):
        raw = _bytes("".join(row.lines)).decode(errors="backslashreplace").rstrip("\r\n")
        detail = f"{len(row.fields)} fields, want {len(names)}"
        return Flaw(Reason.BROKEN_ROW, detail, raw)
    if key is not None:
        return _bytes(row.fields[names.index(key)])
    try:
        fields = [_bytes(field).decode() for field in row.fields]
    except UnicodeDecodeError as error:
        raw = _bytes("".join(row.lines)).decode(errors="backslashreplace").rstrip("\r\n")
        return Flaw(Reason.INVALID_UTF8, f"not UTF-8: {error}", raw)
    return orjson.dumps(dict(zip(names, fields, strict=True)))


def _bytes(field: str) -> bytes:
    return field.encode(_ONE_BYTE_EACH)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Python's limit of 128 KiB is for spreadsheets; it is the process's."""
    before = csv.field_size_limit(FIELD_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)
