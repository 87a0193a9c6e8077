"""A document of plain values as a `RunConfig`, or an error that names every wrong key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llm_train.config import RunConfig
from llm_train.overrides import ConfigError, Value, override, split_word

# Sections for which one word may stand, and the key whose value it is.
BARE_WORDS = MappingProxyType({"recompute": "kind"})

Location = tuple[int | str, ...]

# What pydantic calls wrong, as what was wanted; {name} is taken from the error's context.
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "model_type": "a mapping of keys",
    "enum": "one of {expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
}


def parse(document: Mapping[str, Value], overrides: Sequence[str], where: str) -> RunConfig:
    """Read the run that `document` with `overrides` describes; `where` names it in errors."""
    merged = _spelled_out(override(_spelled_out(document), overrides))
    given = {".".join(split_word(word)[0]): word for word in overrides}
    try:
        # Strict JSON: "10" is no number, 1 is no bool, and paths and enums come from text.
        return RunConfig.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        lines = [_line(detail, given, where) for detail in error.errors()]
    raise ConfigError("\n".join(lines))


def known_keys(location: Location) -> tuple[str, ...]:
    """List the keys that the section at `location` may hold, in the order of declaration."""
    section: type[BaseModel] = RunConfig
    for name in location:
        section = _section(section.model_fields[str(name)].annotation)
    return tuple(section.model_fields)


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return `did you mean max_steps? ` when something known is near `name`, else nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}? " if near else ""


def _spelled_out(document: Mapping[str, Value]) -> dict[str, Value]:
    """Write bare words out as sections, before pydantic sees them.

    A validator of its own could do it, but what it returns is no longer JSON to pydantic, and a
    list no tuple.
    """
    return {
        key: {BARE_WORDS[key]: value} if key in BARE_WORDS and isinstance(value, str) else value
        for key, value in document.items()
    }


def _line(detail: ErrorDetails, given: Mapping[str, str], where: str) -> str:
    location = detail["loc"]
    key = ".".join(str(part) for part in location)
    word = next((given[name] for name in given if f"{key}.".startswith(f"{name}.")), None)
    place = where if word is None else f"override {word!r}"
    subject = f"{place}: {key}" if key else place
    return f"{subject}: {_problem(detail, location)}"


def _problem(detail: ErrorDetails, location: Location) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = known_keys(location[:-1])
        listed = ", ".join(known)
        return f"unknown key; {suggestion(str(location[-1]), known)}(keys: {listed})"
    if kind == "missing":
        return f"missing; wanted {_description(location)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("too_short", "too_long"):
        return f"found {context['actual_length']} entries, wanted {_description(location)}"
    wanted = _WANTED.get(kind, detail["msg"]).format(**context)
    return f"found {_shown(detail['input'])}, wanted {wanted}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _description(location: Location) -> str:
    """Return the field's own description, or for a section its keys that have no default."""
    section: type[BaseModel] = RunConfig
    for name in location[:-1]:
        section = _section(section.model_fields[str(name)].annotation)
    field = section.model_fields[str(location[-1])]
    if field.description:
        return field.description
    inner = _section(field.annotation)
    required = [name for name, entry in inner.model_fields.items() if entry.is_required()]
    return f"a section with {', '.join(required) or 'one of ' + ', '.join(inner.model_fields)}"


def _section(annotation: object) -> type[BaseModel]:
    candidates = (annotation, *get_args(annotation))
    return next(one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel))
