"""What llm-eval asks of a scoring engine. Providers satisfy it by shape, importing nothing here.

A provider registers a `ScorerFactory` in the entry-point group `llm_eval.scorers`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

ENTRY_POINT_GROUP = "llm_eval.scorers"


class LogLikelihood(Protocol):
    """The score of one continuation."""

    @property
    def logprob(self) -> float:
        """Natural-log probability of the continuation given its context."""
        ...

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have produced the continuation."""
        ...


class RollingScore(Protocol):
    """The score of one whole text."""

    @property
    def logprob(self) -> float:
        """Natural-log probability of all tokens, each given at most one context of others."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many tokens were predicted."""
        ...


class Scorer(Protocol):
    """Log-probabilities and greedy text; answers come in the order of the requests."""

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> Sequence[LogLikelihood]:
        """Score `(context, continuation)` pairs."""
        ...

    def loglikelihood_rolling(self, texts: Sequence[str]) -> Sequence[RollingScore]:
        """Score whole texts in rolling windows of the model's context."""
        ...

    def generate(self, requests: Sequence[tuple[str, Sequence[str], int]]) -> Sequence[str]:
        """Continue `(context, stop strings, max_new_tokens)` greedily; stop strings are cut off."""
        ...


class ScorerFactory(Protocol):
    """What the entry point names. It raises ValueError with the reason when it must refuse."""

    def __call__(
        self, model: Path, *, device: str, dtype: str, batch_size: int, max_length: int | None
    ) -> Scorer:
        """Open the model folder; `max_length` None means the model's own context."""
        ...
