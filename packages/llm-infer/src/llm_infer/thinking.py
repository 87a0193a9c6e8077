"""Thoughts in an answer: what stands between `<think>` and `</think>`, as the text comes.

Qwen 3, DeepSeek R1 and many after them write thus. A template may open the thought itself, at the
end of the prompt; the model then only closes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

OPEN, CLOSE = "<think>", "</think>"
LAST_TOKENS = 16
"""Enough of a prompt to see how it ends."""


class Kind(StrEnum):
    """What a piece of an answer is."""

    THOUGHT = "thought"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one kind; never empty."""

    kind: Kind
    text: str


def opens_thought(prompt: str) -> bool:
    """Whether an answer to this prompt begins within a thought."""
    return prompt.rstrip().endswith(OPEN)


class ThoughtSplitter:
    """Push pieces of text, wherever they break; the marks themselves are left out.

    Only a thought that opens the answer is one: later marks are text. White space just within the
    marks and after them is left out too.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._kind = Kind.THOUGHT if is_open else None
        self._skips_space = is_open
        self._held = ""

    def push(self, piece: str) -> Iterator[Part]:
        """The parts that are certain now."""
        self._held += piece
        if self._kind is None:
            self._begin()
        if self._kind is Kind.THOUGHT:
            yield from self._thought()
        if self._kind is Kind.ANSWER:
            self._skip_space()
            yield from self._give(len(self._held))

    def flush(self) -> Iterator[Part]:
        """What was held back, now that no more text comes."""
        yield from self._give(len(self._held))

    def _begin(self) -> None:
        """Find out what the answer opens with, which may not be certain yet."""
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._kind, self._skips_space = Kind.THOUGHT, True
            self._held = text.removeprefix(OPEN)
        elif not OPEN.startswith(text):
            self._kind = Kind.ANSWER

    def _thought(self) -> Iterator[Part]:
        self._skip_space()
        thought, mark, rest = self._held.partition(CLOSE)
        if mark:
            yield from self._give(len(thought.rstrip()))
            self._kind, self._held, self._skips_space = Kind.ANSWER, rest, True
            return
        # White space and the first half of a mark may turn out to be the thought's end.
        end = len(self._held) - _num_possible(self._held)
        yield from self._give(len(self._held[:end].rstrip()))

    def _skip_space(self) -> None:
        if self._skips_space:
            self._held = self._held.lstrip()
            self._skips_space = not self._held

    def _give(self, count: int) -> Iterator[Part]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield Part(self._kind or Kind.ANSWER, text)


def _num_possible(text: str) -> int:
    """Length of the longest end of `text` that the closing mark starts with."""
    lengths = range(min(len(CLOSE) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(CLOSE[:length])), 0)
