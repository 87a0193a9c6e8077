"""Model sides of the harness: lm-eval's `hf` made resumable, and a `Scorer` seen as its model."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llm_eval.errors import EvalError
from llm_eval.scorer import ChatScorer, Scorer

# A log-probability, and what goes with it: greedy or not, or a number of tokens.
Score = tuple[float, int]
T = TypeVar("T")


class Recall(Protocol):
    """Remembers batches: the stored scores for `key`, or those of `compute`, then stored."""

    def __call__(
        self, key: str, compute: Callable[[], Sequence[Score]], *, num_tokens: int
    ) -> list[Score]:
        """`num_tokens` is how many predictions the batch holds, for the progress shown."""
        ...


class ScorerLM(LM):
    """A `Scorer` as a model of lm-evaluation-harness."""

    def __init__(self, scorer: Scorer, *, batch_size: int, recall: Recall | None = None) -> None:
        super().__init__()
        self._scorer = scorer
        self._batch_size = batch_size
        self._recall = recall
        self._num_tokens: dict[str, int] = {}

    def num_tokens(self, text: str) -> int:
        """Tokens the scorer predicted in a text it has scored."""
        return self._num_tokens[text]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """All pairs at once: batching is the scorer's business."""
        pairs = [(context, continuation) for context, continuation in map(_args, requests)]
        scores = _answered(self._scorer.loglikelihood(pairs), len(pairs), "loglikelihood")
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Whole texts, a batch at a time, each batch recalled where it is known."""
        texts = [str(request.args[0]) for request in requests]
        logprobs: list[float] = []
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            for text, (logprob, tokens) in zip(batch, self._score(batch), strict=True):
                self._num_tokens[text] = tokens
                logprobs.append(logprob)
        return logprobs

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations up to the first stop string."""
        wanted = [_generation(request) for request in requests]
        return list(_answered(self._scorer.generate(wanted), len(wanted), "generate"))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """By the scorer; EvalError where it has no template or the template refuses."""
        scorer = self._chat_scorer()
        try:
            return scorer.apply_chat_template(
                chat_history, add_generation_prompt=add_generation_prompt
            )
        except ValueError as error:
            raise EvalError(f"scorer: the chat template refuses a prompt: {error}") from error

    def chat_template(self, chat_template: bool | str = False) -> str | None:  # noqa: ARG002 - lm-eval's signature
        """The scorer's template; it has one."""
        return self._chat_scorer().chat_template

    @property
    def tokenizer_name(self) -> str:
        """Nothing: it names lm-eval's cache of prompts, which is not used."""
        return ""

    def _chat_scorer(self) -> ChatScorer:
        if not isinstance(self._scorer, ChatScorer) or self._scorer.chat_template is None:
            raise EvalError(
                "the scorer has no chat template for this model; ask without one "
                "(another --prompt-type, or without --apply-chat-template)"
            )
        return self._scorer

    def _score(self, texts: list[str]) -> Sequence[Score]:
        def compute() -> list[Score]:
            scores = _answered(self._scorer.loglikelihood_rolling(texts), len(texts), "rolling")
            return [(score.logprob, score.num_tokens) for score in scores]

        if self._recall is None:
            return compute()
        return self._recall(batch_key(texts), compute, num_tokens=len(texts))


def batch_key(parts: Sequence[object]) -> str:
    """A name for a batch that changes with anything in it."""
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:32]


def _generation(request: Instance) -> tuple[str, tuple[str, ...], int]:
    context, options = _args(request)
    if options.get("do_sample") or float(options.get("temperature") or 0.0) > 0.0:
        raise EvalError(f"{request.task_name}: wants sampling; a scorer generates greedily")
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    return context, stops, int(options.get("max_gen_toks", 256))


def _args(request: Instance) -> tuple[Any, ...]:
    """What is asked, whose shape depends on the kind of request."""
    return request.args


def _answered(answers: Sequence[T], wanted: int, what: str) -> Sequence[T]:
    if len(answers) != wanted:
        raise EvalError(f"scorer: {what} gave {len(answers)} answers to {wanted} requests")
    return answers
