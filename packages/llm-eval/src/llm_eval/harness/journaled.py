"""A model of the harness whose every answer is remembered, below lm-eval's evaluator.

The journal is the authority: an answer in it is never computed again. What is not in it is scored
in blocks that depend on the requests alone (`llm_eval.blocks`), so a run that was interrupted ends
with the same answers as one that was not.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llm_eval.errors import EvalError
from llm_eval.harness.engine import Answer, Engine, Kind, Request, Scheduler, Work

# Requests planned at a time: the first scores come soon, and what is known is not planned again.
_SEGMENT = 1024


class Journal(Protocol):
    """Answers by key, kept on disk."""

    def lookup(self, key: str) -> Any:
        """The answer, or None."""
        ...

    def append(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Remember the answers of one block, all or none."""
        ...


class JournaledLM(LM):
    """An `Engine` as a model of lm-evaluation-harness.

    The journal is written when `flush_every` requests have been answered, at the end, and when
    an error ends the run. `on_progress` is told the kind, how many are answered, and how many
    there are.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        journal: Journal,
        *,
        flush_every: int = 1,
        on_progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        super().__init__()
        self._flush_every = flush_every
        self._on_progress = on_progress
        self._unwritten: list[tuple[str, Answer]] = []
        self._expected: dict[str, _Asked] = {}
        self._engine = engine
        self._scheduler = scheduler
        self._journal = journal

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would give it."""
        found = cast("list[list[float]]", self._answers("loglikelihood", requests))
        return [(logprob, bool(greedy)) for logprob, greedy in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each whole text."""
        return cast("list[float]", self._answers("loglikelihood_rolling", requests))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A continuation for each context."""
        return cast("list[str]", self._answers("generate_until", requests))

    def expect(self, instances: Sequence[Instance]) -> None:
        """Requests that will be asked for next, in this order: scored when they fill a segment.

        The same segments as when all are asked for at once, only sooner.
        """
        for instance in instances:
            kind = cast("Kind", instance.request_type)
            expected = self._expected.setdefault(kind, _Asked(kind))
            expected.add([_args(instance)] * int(instance.repeats or 1))
            while len(expected.names) - expected.num_scored >= _SEGMENT:
                self._score_next(expected, len(expected.names))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The engine's own template."""
        return self._chat("apply_chat_template")(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The engine's own template, as text."""
        return self._chat("chat_template")(chat_template)

    @property
    def tokenizer_name(self) -> str:
        """What the harness keys its cache of prompts by."""
        return str(getattr(self._engine, "tokenizer_name", ""))

    def _chat(self, name: str) -> Any:
        found = getattr(self._engine, name, None)
        if found is None:
            raise EvalError(
                "this engine has no chat template; choose another --prompt-type, or leave out "
                "--apply-chat-template"
            )
        return found

    def _answers(self, kind: Kind, instances: Sequence[Instance]) -> list[Answer]:
        asked = _Asked(kind)
        keys = asked.add([_args(instance) for instance in instances])
        while asked.num_scored < len(asked.names):
            self._score_next(asked, len(asked.names))
        self._on_progress(kind, len(asked.names), len(asked.names))
        return [self._journal.lookup(key) for key in keys]

    def _score_next(self, asked: "_Asked", total: int) -> None:
        part = slice(asked.num_scored, asked.num_scored + _SEGMENT)
        self._on_progress(asked.kind, asked.num_scored, total)
        self._score(asked.kind, asked.names[part], asked.requests[part])
        asked.num_scored += _SEGMENT

    def _score(self, kind: Kind, names: list[str], requests: list[Request]) -> None:
        if all(self._journal.lookup(name) is not None for name in names):
            return

        def missing() -> Iterator[Work]:
            for work in self._engine.plan(kind, requests):
                if any(self._journal.lookup(names[number]) is None for number in work.indices):
                    yield work

        try:
            for work, answers in self._scheduler.answers(missing()):
                found = [names[number] for number in work.indices]
                if len(answers) != len(found):
                    raise EvalError(f"engine: {len(answers)} answers to {len(found)} requests")
                for answer in answers:
                    _check(answer)
                self._unwritten += zip(found, answers, strict=True)
                if len(self._unwritten) >= self._flush_every:
                    self._write()
        finally:
            self._write()

    def _write(self) -> None:
        if self._unwritten:
            self._journal.append(self._unwritten)
            self._unwritten = []


class _Asked:
    """Requests of one kind by digest, each once, in the order in which they are asked."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.names: list[str] = []
        self.requests: list[Request] = []
        self.num_scored = 0
        self._known: set[str] = set()
        self._sampled: dict[str, int] = {}

    def add(self, requests: Sequence[Request]) -> list[str]:
        """The digest of each; repeats of a sampled one (the harness asks k times) count up."""
        keys: list[str] = []
        for request in requests:
            text = json.dumps(
                [self.kind, *request], sort_keys=True, ensure_ascii=False, default=str
            )
            if _is_sampled(request):
                self._sampled[text] = self._sampled.get(text, -1) + 1
                text = f"{self._sampled[text]}\0{text}"
            key = hashlib.sha256(text.encode()).hexdigest()[:32]
            keys.append(key)
            # The same question asked twice is scored once.
            if key not in self._known:
                self._known.add(key)
                self.names.append(key)
                self.requests.append(request)
        return keys


def _is_sampled(request: Request) -> bool:
    options = request[-1]
    return isinstance(options, dict) and bool(options.get("do_sample"))


def _check(answer: Answer) -> None:
    logprob = answer[0] if isinstance(answer, list) else answer
    if isinstance(logprob, float) and not math.isfinite(logprob):
        raise EvalError(f"the model gave a log-probability that is no number: {logprob}")


def _args(instance: Instance) -> Request:
    return tuple(instance.args)
