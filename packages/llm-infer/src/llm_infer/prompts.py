"""Prompts as JSON lines, and the lines that answer them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from llm_infer.errors import InferError
from llm_infer.unicode_text import require_text

ANSWER_KEYS = ("text", "finish_reason", "num_prompt_tokens", "num_tokens")
"""What every answer has."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line: the prompt, the whole record it came in, and `file:line`."""

    text: str
    record: Mapping[str, object]
    where: str


def parse_prompts(
    content: str, where: str, *, answer_keys: Sequence[str] = ANSWER_KEYS
) -> Iterator[Prompt]:
    """One prompt per non-blank line: an object with a string `prompt`; other keys are kept.

    None of them may be one of `answer_keys`.
    """
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _prompt(line, f"{where}:{number}", answer_keys)


def answer_line(prompt: Prompt, answer: Mapping[str, object]) -> str:
    """The prompt's record with the answer added, as one line of JSON."""
    return json.dumps({**prompt.record, **answer}, ensure_ascii=False) + "\n"


def _prompt(line: str, where: str, answer_keys: Sequence[str]) -> Prompt:
    try:
        value: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise InferError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise InferError(f"{where}: found {type(value).__name__}, want a JSON object")
    record = cast("dict[str, object]", value)
    if not isinstance(text := record.get("prompt"), str):
        found = type(text).__name__ if "prompt" in record else f"keys {', '.join(record) or 'none'}"
        raise InferError(f"{where}: want a string under 'prompt'; found {found}")
    if taken := [key for key in answer_keys if key in record]:
        raise InferError(f"{where}: {taken[0]!r} is where the answer goes; rename that key")
    require_text(json.dumps(record, ensure_ascii=False), where=where)
    return Prompt(text, record, where)
