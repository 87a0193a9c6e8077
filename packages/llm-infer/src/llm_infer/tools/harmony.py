"""gpt-oss' channels: an answer is several messages, each with a header that says what it is.

`<|channel|>analysis<|message|>` begins a thought, `final` and `commentary` begin words, and
`to=functions.NAME` makes the message a call. Format:
https://cookbook.openai.com/articles/openai-harmony.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto

from llm_infer.thinking import Thought
from llm_infer.tools.calls import Call, Signatures, calls_of, json_values

START, MESSAGE = "<|start|>", "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", START)
MARKS = (START, MESSAGE, *_ENDS[:-1], "<|channel|>", "<|constrain|>")

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_BEGINNINGS = ("<|channel|>", "<|constrain|>", MESSAGE, START, "to=", "assistant")
"""What a header can begin with, after white space."""


class _At(Enum):
    HEADER = auto()
    THOUGHT = auto()
    WORDS = auto()
    CALL = auto()
    PLAIN = auto()
    """An answer without channels."""


class HarmonySplitter:
    """Push pieces of text, wherever they break; marks and headers are left out.

    A call that is none, of an unknown function or with other arguments than an object, is words.
    """

    def __init__(self, tools: Signatures, *, prompt_end: str) -> None:
        """`prompt_end` is how the prompt ends, which may have begun the answer's first message."""
        self._tools = tools
        self._at, self._function = _At.HEADER, ""
        self._held: str = ""
        self._has_begun = False
        _, is_opened, opened = prompt_end.rpartition(START)
        header, mark, _ = opened.partition(MESSAGE)
        if not is_opened:
            return
        if mark:
            self._begin(header)
        else:
            # A header may be cut by the prompt's end.
            self._held = header.removeprefix("assistant")

    @property
    def is_within_thought(self) -> bool:
        """Whether what comes next belongs to a thought, as far as is known."""
        return self._at is _At.THOUGHT

    def push(self, piece: str) -> Iterator[str | Thought | Call]:
        """What is certain now, in order."""
        self._held += piece
        while True:
            before = self._at, len(self._held)
            yield from self._advanced()
            if (self._at, len(self._held)) == before:
                return

    def flush(self) -> Iterator[str | Thought | Call]:
        """What was held back, now that no more text comes."""
        if self._at is _At.HEADER and self._has_begun:
            # The answer was cut within a header, which says nothing.
            self._held = ""
        if self._at is _At.CALL:
            yield from self._called(len(self._held))
        yield from self._given(len(self._held))

    def _advanced(self) -> Iterator[str | Thought | Call]:
        if self._at is _At.HEADER:
            self._read_header()
            return
        if self._at is _At.PLAIN:
            yield from self._given(len(self._held))
            return
        ends = [(at, one) for one in _ENDS if (at := self._held.find(one)) >= 0]
        if not ends:
            if self._at is not _At.CALL:
                yield from self._given(len(self._held) - _num_begun(self._held))
            return
        at, mark = min(ends)
        yield from self._called(at) if self._at is _At.CALL else self._given(at)
        self._held = self._held[len(mark) :]
        self._at = _At.HEADER

    def _read_header(self) -> None:
        text = self._held.lstrip()
        if not self._has_begun and not any(
            one.startswith(text) or text.startswith(one) for one in _BEGINNINGS
        ):
            self._at = _At.PLAIN
            return
        header, mark, rest = self._held.partition(MESSAGE)
        if mark:
            self._begin(header)
            self._held = rest

    def _begin(self, header: str) -> None:
        self._has_begun = True
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL.search(header)
        self._function = "" if recipient is None else recipient[1].removeprefix("functions.")
        if self._function in self._tools:
            self._at = _At.CALL
        elif channel is not None and channel[1] == "analysis" and recipient is None:
            self._at = _At.THOUGHT
        else:
            self._at = _At.WORDS

    def _called(self, end: int) -> Iterator[str | Call]:
        values = json_values(self._held[:end]) or [None]
        call = {"name": self._function, "arguments": values[0]} if len(values) == 1 else None
        found = calls_of([call])
        if found is None:
            self._at = _At.WORDS
            yield from (one for one in self._given(end) if isinstance(one, str))
            return
        self._held = self._held[end:]
        yield from found

    def _given(self, count: int) -> Iterator[str | Thought]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield Thought(text) if self._at is _At.THOUGHT else text


def _num_begun(text: str) -> int:
    """Length of the longest end of `text` that a mark starts with."""
    lengths = range(min(len(text), max(map(len, _ENDS)) - 1), 0, -1)
    found = (length for length in lengths if any(one.startswith(text[-length:]) for one in _ENDS))
    return next(found, 0)
