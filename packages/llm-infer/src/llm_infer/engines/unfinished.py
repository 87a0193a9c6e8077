"""Requests of the native engine that are unfinished, and what changes while it runs."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm_infer.beam import BeamSearch
from llm_infer.engine import Event
from llm_infer.logits import Chosen, choose
from llm_infer.sampling import Sampling
from llm_infer.scheduler import Sequence as Text


@dataclass(slots=True, kw_only=True)
class EngineRequest:
    """A request that is unfinished: one text, or the search that continues it."""

    text: Text
    sampling: Sampling
    generator: torch.Generator
    is_started: bool = False
    num_cached: int = 0
    """Tokens of the prompt that were in the cache when it was started."""
    search: BeamSearch | None = None
    numbers: Sequence[int] = ()
    """Of the texts that a search gives, best first."""

    @property
    def answer(self) -> list[int]:
        """Tokens chosen so far."""
        return self.text.tokens[self.text.num_prompt :]


@dataclass(slots=True)
class Counts:
    """Tokens of prompts that were started, and those of them found in the cache."""

    prompt_tokens: int = 0
    shared_tokens: int = 0


@dataclass(slots=True)
class EngineState:
    """What changes while the engine runs."""

    next_number: int = 0
    requests: dict[int, EngineRequest] = field(default_factory=dict[int, EngineRequest])
    # Events for those who read one request's tokens, not the engine's steps.
    inboxes: dict[int, deque[Event]] = field(default_factory=dict[int, "deque[Event]"])
    # Numbers of texts that searches give and that are still wanted, to the request's.
    searched: dict[int, int] = field(default_factory=dict[int, int])
    counts: Counts = field(default_factory=Counts)


def next_token(logits_V: Tensor, one: EngineRequest) -> Chosen | Exception:
    """A token after logits [V], or why there is none."""
    try:
        return choose(
            logits_V,
            one.sampling,
            prompt=one.text.tokens[: one.text.num_prompt],
            answer=one.answer,
            generator=one.generator,
        )
    except Exception as error:  # noqa: BLE001  the failure of this request
        return error
