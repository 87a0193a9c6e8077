"""YAML text and `key=value` words as plain values: what a config is before it is checked."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import yaml

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Document = dict[str, Value]

# The scalars of YAML 1.2's core schema, less numbers with leading zeros. PyYAML's own rules are
# 1.1's, in which 1e-4 is text, 010 is eight, 1:30 is ninety and 2024-01-01 is a date.
_SCALARS = (
    ("bool", "tTfF", r"true|True|false|False"),
    ("null", "~nN", r"~|null|Null|NULL"),
    ("int", "-+0123456789", r"[-+]?(0|[1-9][0-9_]*)"),
    ("float", "-+.0123456789", r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*)([eE][-+]?[0-9]+)?"),
    ("float", "-+0123456789", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"),
    ("float", "-+.", r"[-+]?\.(inf|Inf)|\.(nan|NaN)"),
    ("merge", "<", r"<<"),
    ("null", ("",), r""),
)

# As PyYAML keeps them: what the first character allows, in the order tried.
_RESOLVERS = {
    first: [
        (f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})\\Z"))
        for tag, firsts, pattern in _SCALARS
        if first in tuple(firsts)
    ]
    for first in sorted({first for _, firsts, _ in _SCALARS for first in firsts})
}


class ConfigError(ValueError):
    """A config that cannot be used: where, the key, what was found and what was wanted."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars, and no key twice in one mapping."""

    yaml_implicit_resolvers = _RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"line {line}: key {key.value!r} was already given on line {seen[key.value]}"
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep=deep)


def read_document(text: str, where: str) -> Document:
    """Read the mapping that YAML `text` holds; `where` names it in errors."""
    try:
        document = _read(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not isinstance(document, dict):
        found = "an empty file" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{where}: found {found}, wanted a mapping of sections (model:, data: …)")
    return document


def override(document: Mapping[str, Value], words: Sequence[str]) -> Document:
    """Copy `document` with each `section.key=value` of `words` set, the last one winning."""
    changed = dict(document)
    for word in words:
        path, value = split_word(word)
        changed = _set(changed, path, value, word)
    return changed


def split_word(word: str) -> tuple[tuple[str, ...], Value]:
    """Split `train.max_steps=10` into its path and its value, read as YAML."""
    key, equals, text = word.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"override {word!r}: found no key=value, wanted e.g. train.max_steps=10 or device=cpu"
        )
    try:
        return path, _read(text)
    except ConfigError as error:
        raise ConfigError(f"override {word!r}: {error}") from None


def _read(text: str) -> Value:
    try:
        # SafeLoader makes only the plain values named by Value, given the tags above.
        return cast(Value, yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{line}not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from None


def _set(section: Mapping[str, Value], path: Sequence[str], value: Value, word: str) -> Document:
    key, rest = path[0], path[1:]
    if not rest:
        return {**section, key: value}
    inner = section.get(key)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise ConfigError(f"override {word!r}: {key} is {inner!r}, which has no keys in it")
    return {**section, key: _set(inner, rest, value, word)}
