"""What generates tokens, and what turns text into them: the two things a model must bring."""

from collections.abc import Generator, Mapping, Sequence
from typing import Protocol

from llm_infer.sampling import Sampling

Message = Mapping[str, str]
"""`role` (system, user, assistant) and `content`."""


class Engine(Protocol):
    """A loaded model."""

    @property
    def description(self) -> str:
        """Engine, device and number type, as printed once at the start."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[int, None, None]:
        """Tokens as they come, without the end token; closing it ends the computation."""
        ...


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works without a template of its own."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with whatever the model wants at its start."""
        ...

    def encode_chat(self, messages: Sequence[Message], template: str | None) -> list[int]:
        """Tokens of a conversation up to where the assistant's answer starts."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        ...
