"""Checks between parsed JSON and the typed values of a manifest."""

import json
from collections.abc import Iterable, Sequence
from typing import cast

from llm_data.errors import FormatError, did_you_mean, listed


def parse_manifest(data: bytes, *, format_name: str, version: int, where: str) -> dict[str, object]:
    """The keys of a manifest other than `format` and `version`, which must be the given ones."""
    try:
        parsed: object = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {error}") from None
    body = as_object(parsed, where=where)
    for key, wanted in (("format", format_name), ("version", version)):
        if body.get(key) != wanted:
            raise FormatError(f"{where}: {key} {body.get(key)!r}, want {wanted!r}")
    return {key: value for key, value in body.items() if key not in ("format", "version")}


def check_keys(body: dict[str, object], wanted: Sequence[str], *, where: str) -> None:
    """Refuse an unknown or a missing key."""
    for key in body:
        if key not in wanted:
            raise FormatError(f"{where}: unknown key {key!r}{did_you_mean(key, wanted)}")
    if missing := [key for key in wanted if key not in body]:
        raise FormatError(f"{where}: no key {missing[0]!r}; found {listed(sorted(body))}")


def as_object(value: object, *, where: str) -> dict[str, object]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise wrong_value(value, "an object", where=where)
    return cast("dict[str, object]", value)


def as_list(value: object, *, where: str) -> list[object]:
    """A JSON array."""
    if not isinstance(value, list):
        raise wrong_value(value, "a list", where=where)
    return cast("list[object]", value)


def as_text(value: object, *, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong_value(value, "a string", where=where)
    return value


def as_optional_text(value: object, *, where: str) -> str | None:
    """A string or null."""
    return None if value is None else as_text(value, where=where)


def as_count(value: object, *, where: str) -> int:
    """An integer that is not negative."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise wrong_value(value, "an integer ≥ 0", where=where)
    return value


def as_optional_count(value: object, *, where: str) -> int | None:
    """An integer that is not negative, or null."""
    return None if value is None else as_count(value, where=where)


def as_counts(value: object, *, where: str) -> dict[str, int]:
    """An object of counts."""
    body = as_object(value, where=where)
    return {name: as_count(count, where=f"{where}.{name}") for name, count in body.items()}


def as_options(value: object, *, where: str) -> dict[str, str | int | bool | None]:
    """An object of strings, integers, booleans and nulls."""
    body = as_object(value, where=where)
    found: dict[str, str | int | bool | None] = {}
    for name, item in body.items():
        if not isinstance(item, str | int | None):
            raise wrong_value(
                item, "a string, an integer, true, false or null", where=f"{where}.{name}"
            )
        found[name] = item
    return found


def as_flag(value: object, *, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong_value(value, "true or false", where=where)
    return value


def as_choice(value: object, choices: Iterable[str], *, where: str) -> str:
    """One of the given strings."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise wrong_value(value, f"one of {listed(known)}", where=where)
    return value


def wrong_value(value: object, wanted: str, *, where: str) -> FormatError:
    """The error for a value of another kind than `wanted`."""
    return FormatError(f"{where}: {repr(value)[:60]}, want {wanted}")
