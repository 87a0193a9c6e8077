"""What `generate` and `chat` talk to: a model in this process, or one behind a server."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from llm_infer.edge.answers import Answer
from llm_infer.engine import Message
from llm_infer.prompts import Prompt
from llm_infer.sampling import Sampling
from llm_infer.stream import FinishReason
from llm_infer.thinking import Thought, ThoughtReading
from llm_infer.tools.splitter import CallReading


class AnswerStream(Protocol):
    """Iterate for pieces of text; afterwards all of it is final. None is what nobody knows."""

    def __iter__(self) -> Iterator[str]:
        """The text as it comes; closing the iterator ends the computation."""
        ...

    def parts(self) -> Iterator[str | Thought]:
        """The same, with the thoughts that somebody else has told apart."""
        ...

    @property
    def num_prompt_tokens(self) -> int | None:
        """Tokens of the prompt."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        ...

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended."""
        ...

    @property
    def first_token_s(self) -> float | None:
        """Seconds until the first token."""
        ...

    @property
    def tokens_per_s(self) -> float | None:
        """Rate after the first token."""
        ...


class Speaker(Protocol):
    """A model that answers."""

    def require_chat(self, messages: Sequence[Message]) -> None:
        """Raise InferError when a conversation like this one cannot be written for the model."""
        ...

    def thought_reading(self, messages: Sequence[Message]) -> ThoughtReading:
        """How the thought is found in the answer to a conversation."""
        ...

    def call_reading(self, messages: Sequence[Message]) -> CallReading | None:
        """How calls, and channels, are found in the answer to a conversation; None for neither."""
        ...

    def complete(self, prompt: str, sampling: Sampling) -> AnswerStream:
        """What follows a text."""
        ...

    def converse(self, messages: Sequence[Message], sampling: Sampling) -> AnswerStream:
        """The next answer in a conversation."""
        ...

    def complete_all(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        """What follows each text, in order; text N is drawn with `seed + N`."""
        ...
