"""Values of a record's columns by their type; a record without them is refused.

An absent column and null mean the same, because readers of tables give null where a row has
nothing.
"""

from collections.abc import Mapping
from typing import TypeGuard

import orjson

from llm_data.errors import did_you_mean, listed
from llm_data.records import Reason, RecordRefusedError, kind_of

Body = Mapping[str, object]


def required(body: Body, key: str, *, what: str = "the record") -> object:
    """The value, which may be null, of a key that must be there."""
    if key not in body:
        detail = f"no key {key!r}; {what} has {listed(body)}{did_you_mean(key, body)}"
        raise RecordRefusedError(Reason.MISSING_KEY, detail)
    return body[key]


def is_list(value: object) -> TypeGuard[list[object]]:
    """Whether a JSON value is a list."""
    return isinstance(value, list)


def is_object(value: object) -> TypeGuard[Body]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def text_of(value: object, where: str) -> str:
    """A string; null is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong_type(where, value, "a string")
    return value


def list_of(value: object, where: str) -> list[object]:
    """A list, or a string that is one in JSON; null and an empty string are an empty one."""
    value = decoded(value, where) if isinstance(value, str) else value
    if value is None:
        return []
    if not is_list(value):
        raise wrong_type(where, value, "a list")
    return value


def object_of(value: object, where: str) -> Body:
    """An object."""
    if not is_object(value):
        raise wrong_type(where, value, "an object")
    return value


def decoded(text: str, where: str) -> object:
    """What a JSON text says; None if it is empty."""
    if not text.strip():
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        detail = f"{where} is {shown!r}, want JSON: {error.msg} at column {error.colno}"
        raise RecordRefusedError(Reason.WRONG_VALUE, detail) from None


def optional(body: Body, key: str) -> object:
    """The value, None if there is none; an empty key names no column."""
    return body.get(key) if key else None


def wrong_type(where: str, value: object, wanted: str) -> RecordRefusedError:
    """Why a value of the wrong kind refuses its record."""
    return RecordRefusedError(Reason.WRONG_TYPE, f"{where} is {kind_of(value)}, want {wanted}")
