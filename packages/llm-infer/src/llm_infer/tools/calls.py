"""Calls of tools, and what tells the types of their arguments."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

Properties = Mapping[str, object]
"""JSON schemas of a function's arguments, by name."""

Signatures = Mapping[str, Properties]
"""The properties of each tool there is, by the function's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function's name and its arguments, a JSON object as text."""

    name: str
    arguments: str


Reader = Callable[[str, Signatures], list[Call] | None]
"""Takes a block of an answer, its marks included, and gives the calls in it; None where there is
anything else in it.
"""


def json_values(text: str, *, between: str = "") -> list[object] | None:
    """The JSON values that are all of a text, apart from white space; None for any other text."""
    found: list[object] = []
    text = text.strip()
    try:
        while text:
            value, end = _DECODER.raw_decode(text)
            found.append(value)
            text = text[end:].lstrip().removeprefix(between).lstrip()
    # Brackets within brackets, thousands deep.
    except (ValueError, RecursionError):
        return None
    return found


def typed(text: str, schema: object) -> object:
    """The value of an argument written as bare text, of a type that its JSON schema allows.

    Strings are written as they are, all else as JSON, or as Python writes its constants. What no
    type of the schema fits, and what has no schema, is JSON where it can be, else a string.
    """
    types = _types(schema)
    if types == {"string"}:
        return text
    values = json_values(_CONSTANTS.get(text.strip(), text))
    value = values[0] if values is not None and len(values) == 1 else text
    if isinstance(value, str):
        return text
    is_fitting = types is None or bool(_kinds(value) & types)
    return text if not is_fitting and types is not None and "string" in types else value


def _types(schema: object) -> set[str] | None:
    """Names of the types that a schema allows; None where it does not say."""
    if not isinstance(schema, dict):
        return None
    fields = cast("dict[str, object]", schema)
    found = fields.get("type")
    if isinstance(found, str):
        return {found}
    if isinstance(found, list):
        return {one for one in cast("list[object]", found) if isinstance(one, str)}
    for name in ("anyOf", "oneOf"):
        several = fields.get(name)
        if isinstance(several, list):
            each = [_types(one) for one in cast("list[object]", several)]
            return None if None in each else {name for one in each if one for name in one}
    values = fields.get("enum", [fields["const"]] if "const" in fields else None)
    if isinstance(values, list) and values:
        return {kind for value in cast("list[object]", values) for kind in _kinds(value)}
    return None


def _kinds(value: object) -> set[str]:
    """What JSON schema calls a value."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names: dict[type[object], str] = {
        str: "string",
        float: "number",
        list: "array",
        dict: "object",
        type(None): "null",
    }
    return {names[type(value)]}


def calls_of(values: Sequence[object] | None) -> list[Call] | None:
    """Objects with a name and arguments, which Llama names parameters; None for anything else."""
    if not values:
        return None
    found: list[Call] = []
    for value in values:
        fields = cast("dict[str, object]", value if isinstance(value, dict) else {})
        name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters"))
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        found.append(Call(name=name, arguments=json.dumps(arguments, ensure_ascii=False)))
    return found


def _finite(text: str) -> float:
    """JSON has no infinity to write it down with."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
