"""Records of the files that benchmarks are distributed in: CSV, JSON lines, a list in JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from llm_eval.errors import EvalError

Record = Mapping[str, object]


def csv_without_header(*columns: str) -> Callable[[bytes, str], Iterator[Record]]:
    """A parser of CSV whose lines hold exactly `columns`."""

    def parse(content: bytes, where: str) -> Iterator[Record]:
        for number, values in enumerate(_csv(content, where), start=1):
            if len(values) != len(columns):
                raise EvalError(
                    f"{where}: record {number} has {len(values)} columns, "
                    f"want {len(columns)}: {', '.join(columns)}"
                )
            yield dict(zip(columns, values, strict=True))

    return parse


def csv_with_header(content: bytes, where: str) -> Iterator[Record]:
    """Records of CSV whose first line names the columns; an unnamed column is left out."""
    lines = _csv(content, where)
    columns = next(lines, list[str]())
    for number, values in enumerate(lines, start=1):
        if len(values) != len(columns):
            raise EvalError(
                f"{where}: record {number} has {len(values)} columns, its header {len(columns)}"
            )
        yield {name: value for name, value in zip(columns, values, strict=True) if name}


def json_lines(content: bytes, where: str) -> Iterator[Record]:
    """One JSON object a line; blank lines are left out."""
    for number, line in enumerate(_text(content, where).split("\n"), start=1):
        if line.strip():
            yield _object(_json(line, f"{where}: line {number}"), f"{where}: line {number}")


def json_lines_or_array(content: bytes, where: str) -> Iterator[Record]:
    """JSON lines, or where the name ends in `.json` one array of objects."""
    if not where.endswith(".json"):
        yield from json_lines(content, where)
        return
    listed = _json(_text(content, where), where)
    if not isinstance(listed, list):
        raise EvalError(f"{where}: found {type(listed).__name__}, want a JSON array")
    for number, value in enumerate(cast("list[object]", listed), start=1):
        yield _object(value, f"{where}: record {number}")


def json_list(key: str) -> Callable[[bytes, str], Iterator[Record]]:
    """A parser of a JSON object that holds its records as a list under `key`."""

    def parse(content: bytes, where: str) -> Iterator[Record]:
        whole = _object(_json(_text(content, where), where), where)
        require_keys(whole, (key,), where)
        listed = whole[key]
        if not isinstance(listed, list):
            raise EvalError(f"{where}: {key!r} is {type(listed).__name__}, want a list")
        for number, value in enumerate(cast("list[object]", listed), start=1):
            yield _object(value, f"{where}: {key} {number}")

    return parse


def require_keys(record: Record, keys: Sequence[str], where: str) -> None:
    """Raise unless the record has every key."""
    missing = [key for key in keys if key not in record]
    if missing:
        raise EvalError(
            f"{where}: no {', '.join(missing)}; found {', '.join(record) or 'nothing'}, "
            f"want {', '.join(keys)}"
        )


def only(record: Record, keys: Sequence[str]) -> dict[str, object]:
    """The record reduced to `keys`; ValueError where one is missing."""
    missing = [key for key in keys if key not in record]
    if missing:
        raise ValueError(f"no {', '.join(missing)}; found {', '.join(record) or 'nothing'}")
    return {key: record[key] for key in keys}


def _csv(content: bytes, where: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(_text(content, where), newline=""), strict=True)
    except csv.Error as error:
        raise EvalError(f"{where}: not CSV ({error})") from None


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvalError(f"{where}: byte {error.start} is not UTF-8 text; damaged?") from None


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise EvalError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None


def _object(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise EvalError(f"{where}: found {type(value).__name__}, want a JSON object")
    return cast("dict[str, object]", value)
