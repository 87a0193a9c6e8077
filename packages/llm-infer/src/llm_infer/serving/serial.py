"""An engine that answers one prompt at a time, as a `BatchEngine`: the others wait their turn."""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from llm_infer.engine import BatchEngine, DescribingEngine, EndReason, Engine, Event
from llm_infer.sampling import Sampling

if TYPE_CHECKING:
    # With torch, which takes a while to import.
    from llm_infer.logits import Chosen


@dataclass(slots=True)
class _Current:
    request: int
    tokens: "Generator[int, None, None] | Generator[Chosen, None, None]"
    sampling: Sampling
    room: int
    num_tokens: int = 0

    @property
    def end(self) -> EndReason | None:
        if self.num_tokens >= self.sampling.max_new_tokens:
            return "length"
        return "context" if self.num_tokens >= self.room else None


def batched(engine: Engine) -> BatchEngine:
    """The engine itself where it takes many requests, else one that queues for it."""
    return engine if isinstance(engine, BatchEngine) else SerialEngine(engine)


class SerialEngine:
    """First come, first served; a step is a token."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = count()
        self._waiting: deque[tuple[int, Sequence[int], Sampling]] = deque()
        self._current: _Current | None = None

    @property
    def description(self) -> str:
        """That of the engine, and that answers are not batched."""
        return f"{self._engine.description}, one answer at a time"

    @property
    def context_length(self) -> int:
        """The engine's."""
        return self._engine.context_length

    @property
    def has_work(self) -> bool:
        """Whether an answer runs or waits."""
        return self._current is not None or bool(self._waiting)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[int, None, None]:
        """The engine's own."""
        return self._engine.generate(prompt, sampling)

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue an answer. ValueError when there is nothing to answer or no room for it."""
        if not 0 < len(prompt) < self.context_length:
            wanted = f"want 1 to {self.context_length - 1}"
            raise ValueError(f"the prompt has {len(prompt)} tokens, {wanted}")
        request = next(self._numbers)
        self._waiting.append((request, prompt, sampling))
        return request

    def step(self) -> list[Event]:
        """The next token of the answer that runs, or why that answer failed."""
        current = self._current or self._begin()
        try:
            token = next(current.tokens, None)
        except Exception as error:  # noqa: BLE001  handed to the one who asked
            self._current = None
            return [Event(request=current.request, token=None, end=None, failure=error)]
        current.num_tokens += 1
        end = "end" if token is None else current.end
        if end is not None:
            self.cancel(current.request)
        if token is None or isinstance(token, int):
            return [Event(request=current.request, token=token, end=end)]
        return [
            Event(
                request=current.request,
                token=token.token,
                end=end,
                logprob=token.logprob,
                top_logprobs=token.top_logprobs,
            )
        ]

    def cancel(self, request: int) -> None:
        """End its computation, or take it out of the queue."""
        if self._current is not None and self._current.request == request:
            self._current.tokens.close()
            self._current = None
        else:
            self._waiting = deque(one for one in self._waiting if one[0] != request)

    def _begin(self) -> _Current:
        request, prompt, sampling = self._waiting.popleft()
        room = self.context_length - len(prompt)
        engine = self._engine
        if isinstance(engine, DescribingEngine):
            self._current = _Current(request, engine.choices(prompt, sampling), sampling, room)
        else:
            self._current = _Current(request, engine.generate(prompt, sampling), sampling, room)
        return self._current
