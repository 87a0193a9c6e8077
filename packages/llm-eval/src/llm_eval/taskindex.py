"""Names in lm-evaluation-harness' task files, found without parsing YAML.

The harness parses all 14,000 files before it knows one name, about 20 seconds. The lines that
name things are plain enough to be searched for, in half a second.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from llm_eval.errors import EvalError

Kind = Literal["task", "group", "tag"]

# `task:` with a list, below it or in brackets, names the members of a group, not a task.
_NAMED = re.compile(
    rb"""^["']?(task|group|tag)["']?[ \t]*:[ \t]*(.*?)[ \t]*(?:#.*)?$""", re.MULTILINE
)
_ITEMS = re.compile(rb"(?:\s*^[ \t]*-[ \t]+[^\n]+$)+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Named:
    """A name and the files it stands in: one for a task or group, several for a tag."""

    kind: Kind
    files: tuple[Path, ...]


def names_in(content: bytes) -> list[tuple[Kind, str]]:
    """The tasks, groups and tags that one task file declares."""
    found: list[tuple[Kind, str]] = []
    kinds: dict[bytes, Kind] = {b"task": "task", b"group": "group", b"tag": "tag"}
    for match in _NAMED.finditer(content):
        kind, value = kinds[match[1]], match[2].decode("utf-8", "replace")
        if kind == "tag":
            listed = _ITEMS.match(content, match.end()) if not value else None
            items = listed[0].decode("utf-8", "replace").split("\n") if listed else [value]
            found.extend(("tag", name) for item in items for name in _scalars(item))
        elif not value.startswith("["):
            found.extend((kind, name) for name in _scalars(value))
    return found


def build(files: Iterable[tuple[Path, bytes]]) -> dict[str, Named]:
    """Index of every name; of two tasks or groups of one name the first file stays."""
    index: dict[str, Named] = {}
    for path, content in files:
        for kind, name in names_in(content):
            known = index.get(name)
            if known is None:
                index[name] = Named(kind, (path,))
            elif known.kind == kind == "tag":
                index[name] = Named("tag", (*known.files, path))
    return index


def require(name: str, index: Mapping[str, Named]) -> Named:
    """The entry `name`, or an error with the nearest names."""
    if name in index:
        return index[name]
    near = get_close_matches(name, index, n=5, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise EvalError(f"no task named {name!r}{hint} (search with: llm-eval list '*{name[:6]}*')")


def _scalars(value: str) -> list[str]:
    """Names in a YAML scalar, a list item or an inline list."""
    text = value.partition(" #")[0].strip().removeprefix("- ").strip().strip("[]")
    names = (part.strip().strip("'\"") for part in text.split(","))
    return [name for name in names if name]
