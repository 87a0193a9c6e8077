"""Words and calls of an answer, told apart as the text comes."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import cast

from llm_infer.engine import Tool
from llm_infer.tools.calls import Call, Properties, Signatures
from llm_infer.tools.formats import CallFormat
from llm_infer.tools.harmony import HarmonySplitter


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReading:
    """How the calls of one answer are read."""

    form: CallFormat
    tools: Signatures
    """The tools there are; a call of another is text."""
    is_single: bool = False
    """Whether the answer ends with its first call."""
    prompt_end: str = ""
    """How the prompt ends, with the format's marks, where it has channels."""

    def channels(self) -> HarmonySplitter:
        """For one answer in channels."""
        return HarmonySplitter(self.tools, prompt_end=self.prompt_end)

    def splitter(self) -> "CallSplitter":
        """For one answer without channels, after its thought."""
        return CallSplitter(self.form, self.tools)


def tool_names(tools: Iterable[Tool]) -> frozenset[str]:
    """What the functions are called."""
    return frozenset(tool["function"]["name"] for tool in tools)


def signatures(tools: Iterable[Tool]) -> Signatures:
    """The functions, with what their arguments are."""
    return {tool["function"]["name"]: _properties(tool) for tool in tools}


def _properties(tool: Tool) -> Properties:
    parameters: object = tool["function"].get("parameters")
    if not isinstance(parameters, dict):
        return {}
    found = cast("dict[str, object]", parameters).get("properties")
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


class _At(Enum):
    TEXT = auto()
    BLOCK = auto()
    PLAIN = auto()
    """No block can begin any more."""


class CallSplitter:
    """Push pieces of text, wherever they break; what is no call of a known tool stays text.

    A block is held back until it ends. White space around calls is left out.
    """

    def __init__(self, form: CallFormat, tools: Signatures) -> None:
        self._form, self._tools = form, tools
        self._at = _At.TEXT
        self._held = ""
        # Within a block: where it begins, after white space, and up to where its end was sought.
        self._begin = self._sought = 0
        self._skips_space = False

    def push(self, piece: str) -> Iterator[str | Call]:
        """What is certain now, in order."""
        self._held += piece
        while True:
            before = self._at
            yield from self._advanced()
            if self._at is before:
                return

    def flush(self) -> Iterator[str | Call]:
        """What was held back, now that no more text comes."""
        if self._at is _At.BLOCK:
            yield from self._block(len(self._held))
        if self._skips_space:
            self._held = self._held.lstrip()
        yield from self._text(len(self._held))

    def _advanced(self) -> Iterator[str | Call]:
        match self._at:
            case _At.TEXT:
                yield from self._opening()
            case _At.BLOCK:
                if (end := self._end()) is not None:
                    yield from self._block(end)
            case _At.PLAIN:
                yield from self._text(len(self._held))

    def _opening(self) -> Iterator[str]:
        if self._skips_space:
            self._held = self._held.lstrip()
            self._skips_space = not self._held
        if self._form.opens_answer:
            yield from self._opening_answer()
            return
        starts = [self._held.find(opening) for opening in self._form.openings]
        begin = min((start for start in starts if start >= 0), default=None)
        if begin is None:
            begin = len(self._held) - _num_begun(self._held, self._form.openings)
        else:
            self._at = _At.BLOCK
        # White space before a block is left out with it.
        text = self._held[:begin].rstrip()
        self._begin = self._sought = begin - len(text)
        yield from self._text(len(text))

    def _opening_answer(self) -> Iterator[str]:
        """Only white space may stand before the block."""
        text = self._held.lstrip()
        if text.startswith(self._form.openings):
            self._at = _At.BLOCK
            self._begin = self._sought = len(self._held) - len(text)
        elif not any(opening.startswith(text) for opening in self._form.openings):
            self._at = _At.PLAIN
        yield from ()

    def _end(self) -> int | None:
        """Where the block ends, once it does."""
        closings = self._form.closings
        if not closings:
            return None
        ends = [(self._held.find(one, self._sought), one) for one in closings]
        end, closing = min((one for one in ends if one[0] >= 0), default=(-1, ""))
        if end < 0:
            longest = max(map(len, closings))
            self._sought = max(self._sought, len(self._held) - longest + 1)
            return None
        return end + len(closing)

    def _block(self, end: int) -> Iterator[str | Call]:
        calls = self._form.read(self._held[self._begin : end].rstrip(), self._tools)
        self._at = _At.TEXT
        if calls and all(call.name in self._tools for call in calls):
            self._held, self._skips_space = self._held[end:], True
            yield from calls
        else:
            yield from self._text(end)

    def _text(self, count: int) -> Iterator[str]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield text


def _num_begun(text: str, marks: Collection[str]) -> int:
    """Length of the longest end of `text` that some mark starts with, but is not whole."""
    longest = min(max(map(len, marks)) - 1, len(text))
    return next(
        (
            length
            for length in range(longest, 0, -1)
            if any(mark.startswith(text[-length:]) for mark in marks)
        ),
        0,
    )
