"""Documents: named texts to score, and how a JSON-lines file becomes them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from llm_eval.errors import EvalError


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from (`file` or `file:line`)."""

    name: str
    text: str


def parse_jsonl(content: str, where: str, text_key: str) -> Iterator[Document]:
    """One document per non-blank line; every line must be an object with a string `text_key`."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield Document(f"{where}:{number}", _text_of(line, f"{where}:{number}", text_key))


def without_empty(documents: Sequence[Document]) -> list[Document]:
    """The documents that hold any text; an empty one has no token to predict."""
    return [document for document in documents if document.text]


def digest(documents: Sequence[Document]) -> str:
    """SHA-256 over names and texts, so that a changed input is noticed on resume."""
    state = hashlib.sha256()
    for document in documents:
        for part in (document.name, document.text):
            data = part.encode()
            state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def _text_of(line: str, where: str, text_key: str) -> str:
    try:
        value: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise EvalError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise EvalError(f"{where}: found {type(value).__name__}, want a JSON object")
    record = cast("dict[str, object]", value)
    if text_key not in record:
        keys = ", ".join(record) or "none"
        raise EvalError(f"{where}: no key {text_key!r}; its keys: {keys} (choose with --text-key)")
    text = record[text_key]
    if not isinstance(text, str):
        raise EvalError(f"{where}: {text_key!r} is {type(text).__name__}, want a string")
    return text
