"""Answers held to a grammar: which tokens may come next."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from llm_infer.engine import BatchEngine
from llm_infer.sampling import Sampling


class Guide(Protocol):
    """Follows one answer."""

    def allowed(self, answer: Sequence[int]) -> bytes:
        """One byte a token of the vocabulary, not 0 where it may follow `answer`.

        Each call brings the answer of the call before, or one that goes on from it. At least one
        token is always allowed: where nothing else is, an end token.
        """
        ...


NewGuide = Callable[[], Guide]
"""A guide for each answer to one request."""


@runtime_checkable
class GuidingEngine(BatchEngine, Protocol):
    """An engine that can hold answers to a grammar."""

    def submit_guided(self, prompt: Sequence[int], sampling: Sampling, guide: Guide) -> int:
        """As `submit`, with every token of the answer one that `guide` allows."""
        ...
