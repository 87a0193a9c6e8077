"""A `Scorer` of another package, or an OpenAI-compatible server, as an engine."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llm_eval.errors import EvalError
from llm_eval.harness.engine import Answer, Kind, Request, Work
from llm_eval.harness.models import ScorerLM
from llm_eval.scorer import Scorer

# A scorer batches what it is given itself. With fewer texts to generate, most of its rows would
# stand empty while the longest text ends.
_FEWEST_AT_ONCE = 64


class ChunkEngine:
    """Hands a model of the harness `batch_size` requests at a time.

    `retries` is how often a failed batch is asked again, after 1, 2, 4, … seconds (up to a minute,
    with a random part so that ranks do not knock together). What a batch's shape does to its
    scores is the model's own business: a run is bound to its batch size. `options` go to each call.
    """

    def __init__(
        self,
        lm: LM,
        *,
        batch_size: int,
        retries: int = 0,
        options: Mapping[str, Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lm = lm
        self._batch_size = batch_size
        self._retries = retries
        self._options = options or {}
        self._sleep = sleep

    def plan(self, kind: Kind, requests: Sequence[Request]) -> Iterator[Work]:
        """Consecutive requests."""
        return _consecutive(kind, requests, self._batch_size)

    def score(self, work: Work) -> list[Answer]:
        """The answers of one batch; EvalError when the last try fails too."""
        kind, requests = work.task
        for attempt in range(self._retries + 1):
            try:
                return self._ask(kind, requests)
            except EvalError:
                raise
            # Whatever a client library raises: connection, HTTP status, a reply cut short.
            except Exception as error:
                if attempt == self._retries:
                    raise EvalError(
                        f"a batch of {len(requests)} {kind} requests failed"
                        f" {attempt + 1} times: {type(error).__name__}: {error}"
                    ) from error
                self._sleep(min(60.0, 2.0**attempt) * (1 + random.random() / 4))
        raise AssertionError("unreachable")

    def __getattr__(self, name: str) -> Any:
        if name in ("apply_chat_template", "chat_template", "tokenizer_name"):
            return getattr(self._lm, name)
        raise AttributeError(name)

    def _ask(self, kind: Kind, requests: Sequence[Request]) -> list[Answer]:
        instances = [Instance(kind, {}, request, 0) for request in requests]
        found = getattr(self._lm, kind)(instances, **self._options)
        if kind == "loglikelihood":
            return [[float(logprob), int(greedy)] for logprob, greedy in found]
        if any(answer is None for answer in found):
            raise EvalError("the server left a request without an answer")
        return list(found)


class Planner:
    """Plans for scorers that are open in other processes alone.

    What else a run needs of a scorer, its chat template, one of those processes is asked for:
    `ask` calls a method of its engine.
    """

    tokenizer_name = ""

    def __init__(self, *, batch_size: int, ask: Callable[..., Any]) -> None:
        self._batch_size = batch_size
        self._ask = ask

    def plan(self, kind: Kind, requests: Sequence[Request]) -> Iterator[Work]:
        """As the scorers' own engines do."""
        return _consecutive(kind, requests, _at_once(self._batch_size))

    def score(self, work: Work) -> list[Answer]:
        """Never called: the processes score."""
        raise AssertionError(f"{len(work.indices)} requests for a process without a model")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation."""
        return self._ask("apply_chat_template", chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text."""
        return self._ask("chat_template", chat_template)


def scorer_engine(scorer: Scorer, *, batch_size: int) -> ChunkEngine:
    """A package's scorer."""
    size = _at_once(batch_size)
    return ChunkEngine(ScorerLM(scorer, batch_size=size), batch_size=size)


def _at_once(batch_size: int) -> int:
    return max(batch_size, _FEWEST_AT_ONCE)


def _consecutive(kind: Kind, requests: Sequence[Request], size: int) -> Iterator[Work]:
    for start in range(0, len(requests), size):
        part = tuple(requests[start : start + size])
        yield Work(tuple(range(start, start + len(part))), (kind, part))
