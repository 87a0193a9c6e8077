"""An answer in a conversation as its text comes: thoughts, words and calls of tools."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from llm_infer.thinking import Thought, ThoughtReading, ThoughtSplitter
from llm_infer.tools.calls import Call
from llm_infer.tools.splitter import CallReading, CallSplitter

Part = str | Thought | Call


class Splitter(Protocol):
    """Takes the text of one answer, wherever it breaks."""

    @property
    def is_within_thought(self) -> bool:
        """Whether what comes next belongs to a thought, as far as is known."""
        ...

    def push(self, piece: str) -> Iterator[Part]:
        """What is certain now, in order."""
        ...

    def flush(self) -> Iterator[Part]:
        """What was held back, now that no more text comes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReading:
    """How one answer is read."""

    thoughts: ThoughtReading
    calls: CallReading | None = None
    """None: there are none, or in no known format."""

    @property
    def is_single(self) -> bool:
        """Whether the answer ends with its first call."""
        return self.calls is not None and self.calls.is_single

    @property
    def marks(self) -> tuple[str, ...]:
        """Special tokens that must stay in the text for it to be read."""
        calls = () if self.calls is None else self.calls.form.marks
        return (*self.thoughts.marks.both, *calls)

    def splitter(self) -> Splitter:
        """For one answer."""
        if self.calls is not None and self.calls.form.has_channels:
            return self.calls.channels()
        return AnswerSplitter(self.thoughts, None if self.calls is None else self.calls.splitter())


class AnswerSplitter:
    """First the thought, then words and calls: what looks like a call in a thought is none."""

    def __init__(self, thoughts: ThoughtReading, calls: CallSplitter | None) -> None:
        self._thoughts, self._is_apart = ThoughtSplitter(thoughts), thoughts.is_apart
        self._calls = calls

    @property
    def is_within_thought(self) -> bool:
        """See `Splitter`."""
        return self._thoughts.is_within

    def push(self, piece: str) -> Iterator[Part]:
        """See `Splitter`."""
        yield from self._parts(self._thoughts.push(piece))

    def flush(self) -> Iterator[Part]:
        """See `Splitter`."""
        yield from self._parts(self._thoughts.flush())
        if self._calls is not None:
            yield from self._calls.flush()

    def _parts(self, parts: Iterable[str | Thought]) -> Iterator[Part]:
        for part in parts:
            if isinstance(part, Thought):
                yield part if self._is_apart else part.text
            elif self._calls is None:
                yield part
            else:
                yield from self._calls.push(part)
