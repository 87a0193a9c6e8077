"""Thoughts in an answer: what stands between `<think>` and `</think>`, as the text comes.

Qwen 3, DeepSeek R1 and V3.1, GLM 4.5 and many after them write thus, others with marks of their
own. A template may open the thought itself, at the end of the prompt; the model then only closes
it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

ToldIn = Literal["reasoning_content", "content"]
"""The field of a message that has the thoughts: one of their own, or the text with their marks."""
LAST_TOKENS = 16
"""Enough of a prompt to see how it ends."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What a thought begins and ends with."""

    opening: str
    closing: str

    @property
    def both(self) -> tuple[str, str]:
        """To be kept when tokens become text: they are special tokens in some tokenizers."""
        return (self.opening, self.closing)


THINK = Marks("<think>", "</think>")
OTHERS = (
    Marks("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("◁think▷", "◁/think▷"),  # Kimi-VL
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
)


def marks_of(template: str) -> Marks:
    """Those that a chat template writes; `<think>` where it has none of the others."""
    return next((one for one in OTHERS if any(mark in template for mark in one.both)), THINK)


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what the model thinks before it answers; never empty."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtReading:
    """How the thought of one answer is found."""

    marks: Marks = THINK
    is_open: bool = False
    """Whether the prompt ends within it."""
    is_apart: bool = True
    """Whether it is told apart, without its marks; else it is text, in which nothing is a call."""


def reading_after(prompt: str, marks: Marks, *, is_apart: bool = True) -> ThoughtReading:
    """For the answer to a prompt, of which the last characters are enough."""
    is_open = prompt.rstrip().endswith(marks.opening)
    return ThoughtReading(marks=marks, is_open=is_open, is_apart=is_apart)


class _At(Enum):
    START = auto()
    THOUGHT = auto()
    ANSWER = auto()


class ThoughtSplitter:
    """Push pieces of text, wherever they break.

    Only a thought that opens the answer is one: later marks are text. The marks are left out, and
    white space just within and after them, where the thought is to stand apart.
    """

    def __init__(self, reading: ThoughtReading) -> None:
        self._marks, self._is_apart = reading.marks, reading.is_apart
        self._at = _At.THOUGHT if reading.is_open else _At.START
        self._skips_space = reading.is_open and self._is_apart
        self._held = ""

    @property
    def is_within(self) -> bool:
        """Whether the thought goes on."""
        return self._at is _At.THOUGHT

    def push(self, piece: str) -> Iterator[str | Thought]:
        """What is certain now."""
        self._held += piece
        if self._at is _At.START:
            self._begin()
        if self._at is _At.THOUGHT:
            yield from self._thought()
        if self._at is _At.ANSWER:
            self._skip_space()
            yield from self._give(len(self._held))

    def flush(self) -> Iterator[str | Thought]:
        """What was held back, now that no more text comes."""
        yield from self._give(len(self._held))

    def _begin(self) -> None:
        """Find out what the answer opens with, which may not be certain yet."""
        text, opening = self._held.lstrip(), self._marks.opening
        if text.startswith(opening):
            self._at = _At.THOUGHT
            if self._is_apart:
                self._held, self._skips_space = text.removeprefix(opening), True
        elif not opening.startswith(text):
            self._at = _At.ANSWER

    def _thought(self) -> Iterator[str | Thought]:
        self._skip_space()
        thought, mark, rest = self._held.partition(self._marks.closing)
        if mark and self._is_apart:
            yield from self._give(len(thought.rstrip()))
            self._held, self._skips_space = rest, True
        elif mark:
            yield from self._give(len(thought) + len(mark))
        if mark:
            self._at = _At.ANSWER
            return
        # White space and the first half of a mark may turn out to be the thought's end.
        end = len(self._held) - _num_possible(self._held, self._marks.closing)
        yield from self._give(len(self._held[:end].rstrip()) if self._is_apart else end)

    def _skip_space(self) -> None:
        if self._skips_space:
            self._held = self._held.lstrip()
            self._skips_space = not self._held

    def _give(self, count: int) -> Iterator[str | Thought]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield Thought(text) if self._at is _At.THOUGHT else text


def _num_possible(text: str, mark: str) -> int:
    """Length of the longest end of `text` that the mark starts with."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
