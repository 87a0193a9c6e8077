"""What llm-eval asks of a scoring engine. Providers satisfy it by shape, importing nothing here.

A provider registers a `ScorerFactory` in the entry-point group `llm_eval.scorers`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class ChatScorer(Protocol):
    """What a scorer has beside `Scorer`'s methods to be asked through its model's chat template."""

    @property
    def chat_template(self) -> str | None:
        """The template's text, or None where the model comes without one."""
        ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """Messages of a `role` and its `content` as the text the model was trained on.

        Up to where its answer begins; without `add_generation_prompt` the last message is left
        open, for the model to go on with. Raises ValueError when the template refuses them.
        """
        ...


class ScorerFactory(Protocol):
    """What the entry point names. It raises ValueError with the reason when it must refuse."""

    def __call__(
        self,
        model: Path,
        *,
        device: str,
        dtype: str,
        batch_size: int,
        max_length: int | None,
        threads: int | None,
    ) -> Scorer:
        """Open the model folder; None means the model's own context, and the engine's threads.

        `threads` are of the CPU.
        """
        ...
