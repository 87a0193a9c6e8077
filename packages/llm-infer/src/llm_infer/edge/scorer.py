"""llm-eval's scorer `llm-infer`: the native engine over any folder that a weight provider opens.

The entry point `llm_eval.scorers` names `open_scorer`. Texts become tokens, and tokens text, as in
lm-eval 0.4.13's `hf` model (lm_eval/models/huggingface.py), so that scores can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_infer.edge import model_folder
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.device import CHOICES, DeviceName
from llm_infer.errors import InferError
from llm_infer.sampling import Sampling
from llm_infer.scoring import Reading, Score, pair, up_to_stop, windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_infer.edge.native_model import Opened
    from llm_infer.engines.native import Limits, NativeEngine
    from llm_infer.engines.reading import Reader

# Encoded texts at hand: a question's own and those with its choices.
_KEPT_TEXTS = 8
# Tokens decoded to look for a stop string, beyond the string's own.
_STOP_MARGIN = 4


def open_scorer(
    model: Path,
    *,
    device: str,
    dtype: str,
    batch_size: int,  # noqa: ARG001 - the scheduler decides what is computed together
    max_length: int | None,
    threads: int | None,
) -> "NativeScorer":
    """The model under a Hugging Face or Megatron folder as a scorer.

    `max_length` None means the model's own context, `threads` None as many CPU threads as torch
    has. Raises ValueError for a folder that cannot be
    read, layers the native engine does not run, and choices out of range.
    """
    model_folder.keep_offline()
    import torch

    from llm_infer.edge.native_model import open_native

    if threads is not None:
        # Before the weights are packed: their layout is for a number of threads.
        torch.set_num_threads(threads)
    try:
        if not model.is_dir():
            raise InferError(f"{model}: no such model folder")
        options = LoadOptions(engine="native", device=_device(device), dtype=_dtype(dtype))
        opened = open_native(model, options)
        # lm-eval's `hf` has transformers' tokenizer, with its own ways of decoding.
        tokenizer = model_folder.load_tokenizer(model, num_rows=opened.model.arch.vocab_size)
        scorer = NativeScorer(opened, tokenizer, max_length=max_length)
    except InferError as error:
        raise ValueError(str(error)) from error
    click.echo(scorer.description, err=True)
    return scorer


@dataclass(frozen=True, slots=True)
class RollingScore:
    """Of a whole text: its natural-log probability, and how many tokens were predicted."""

    logprob: float
    num_tokens: int


@dataclass(slots=True)
class _Generation:
    stops: tuple[str, ...]
    window: int
    tokens: list[int] = field(default_factory=list[int])


class NativeScorer:
    """A `Scorer` of llm-eval. Answers come in the order of the requests.

    Keys and values of what texts begin with stay in the cache from one call to the next. Scoring
    and generation have a cache each, made when first used.
    """

    def __init__(
        self, opened: "Opened", tokenizer: "PreTrainedTokenizerBase", *, max_length: int | None
    ) -> None:
        """Raises InferError for a tokenizer without start and end, or a `max_length` too large."""
        context = opened.model.context
        if max_length is not None and max_length > context:
            raise InferError(f"max_length {max_length}: the model's context is {context}")
        starts: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        prefix = next((token for token in starts if token is not None), None)
        if prefix is None:
            raise InferError(
                "the tokenizer names neither bos_token nor eos_token; "
                "one of them starts every text that is scored (tokenizer_config.json)"
            )
        self._opened, self._tokenizer = opened, tokenizer
        # As lm-eval: what dynamic rope scaling adds to the trained length is not taken by itself.
        trained = min(context, opened.model.arch.max_position_embeddings)
        self._prefix, self._max_length = int(prefix), max_length or trained
        self._prefix_text = str(tokenizer.decode([self._prefix]))
        self._encode = lru_cache(_KEPT_TEXTS)(self._encoded)

    @property
    def description(self) -> str:
        """Engine, device, number type and operators."""
        model, kernels = self._opened.model, self._opened.kernels
        dtype = str(model.dtype).removeprefix("torch.")
        return f"scorer: llm-infer, native on {model.device}, {dtype}, kernels {kernels}"

    @property
    def chat_template(self) -> str | None:
        """The text of the folder's chat template, of several the one named default."""
        found: Any = self._tokenizer.chat_template
        return found.get("default") if isinstance(found, dict) else found

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """A conversation as text; without `add_generation_prompt` its last message stays open.

        A template that takes no system message is given the others, as lm-eval does. Raises
        ValueError when it refuses them.
        """
        from jinja2 import TemplateError

        others = [message for message in messages if message["role"] != "system"]
        try:
            return self._rendered(messages, starts_answer=add_generation_prompt)
        except TemplateError as error:
            if len(others) == len(messages):
                raise ValueError(str(error)) from error
        try:
            return self._rendered(others, starts_answer=add_generation_prompt)
        except TemplateError as error:
            raise ValueError(str(error)) from error

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """Score `(context, continuation)` pairs; what does not fit is cut on the left."""
        return self.reader.score([self._pair(*request) for request in requests])

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[RollingScore]:
        """Score whole texts in rolling windows of the context."""
        found = list[RollingScore]()
        for text in texts:
            tokens = self._encode(text)
            parts = windows(tokens, prefix=self._prefix, max_length=self._max_length)
            logprobs = [score.logprob for score in self.reader.score(parts)]
            found.append(RollingScore(sum(logprobs), len(tokens)))
        return found

    def generate(self, requests: Sequence[tuple[str, Sequence[str], int]]) -> list[str]:
        """Continue `(context, stop strings, max_new_tokens)` greedily; stop strings are cut off."""
        prompts = [self._prompt(context, limit) for context, _, limit in requests]
        engine, going = self._engine, dict[int, _Generation]()
        try:
            for prompt, (_, until, limit) in zip(prompts, requests, strict=True):
                number = engine.submit(prompt, Sampling(max_new_tokens=limit))
                going[number] = self._generation(until)
            while engine.has_work:
                for event in engine.step():
                    if event.failure is not None:
                        raise event.failure
                    one = going[event.request]
                    if event.token is not None:
                        one.tokens.append(event.token)
                        if event.end is None and self._is_stopped(one):
                            engine.cancel(event.request)
        finally:
            for number in going:
                engine.cancel(number)
        return [up_to_stop(self._decode(one.tokens), one.stops) for one in going.values()]

    @cached_property
    def reader(self) -> "Reader":
        """What computes log-probabilities."""
        from llm_infer.engines.reading import Reader

        return Reader(self._opened.model, limits=self._limits())

    @cached_property
    def _engine(self) -> "NativeEngine":
        from llm_infer.engines.native import NativeEngine

        opened = self._opened
        return NativeEngine(
            opened.model,
            end_tokens=opened.end_tokens,
            limits=self._limits(),
            kernels=opened.kernels,
        )

    def _limits(self) -> "Limits":
        """Half of what a cache may take, and at least one text that fills the context."""
        from llm_infer.edge.native_model import cache_tokens_of
        from llm_infer.engines.native import BLOCK_TOKENS, Limits

        least = self._opened.model.context + 2 * BLOCK_TOKENS
        return Limits(cache_tokens=max(least, cache_tokens_of(self._opened.model) // 2))

    def _pair(self, context: str, continuation: str) -> Reading:
        return pair(
            context,
            continuation,
            encode=self._encode,
            prefix=self._prefix,
            max_length=self._max_length,
        )

    def _encoded(self, text: str, *, is_start: bool = True) -> tuple[int, ...]:
        """Tokens of a text; one that begins with the start token gets no second one."""
        if is_start and not text.startswith(self._prefix_text):
            return tuple(self._tokenizer.encode(text))
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _prompt(self, context: str, limit: int) -> list[int]:
        """The end of the context that leaves room for `limit` new tokens."""
        room = self._max_length - limit
        if room <= 0:
            raise ValueError(
                f"max_new_tokens {limit}: no room in the context of {self._max_length}"
            )
        start = self._tokenizer.bos_token
        is_started = isinstance(start, str) and context.startswith(start)
        tokens = self._tokenizer.encode(context, add_special_tokens=not is_started)
        return list(tokens)[-room:] or [self._prefix]

    def _rendered(self, messages: Sequence[Mapping[str, str]], *, starts_answer: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=starts_answer,
                continue_final_message=not starts_answer,
            )
        )

    def _generation(self, until: Sequence[str]) -> _Generation:
        end = self._tokenizer.eos_token
        stops = tuple(stop for stop in (*until, *([end] if isinstance(end, str) else ())) if stop)
        lengths = [len(self._tokenizer.encode(stop, add_special_tokens=False)) for stop in stops]
        return _Generation(stops, max(lengths, default=0) + _STOP_MARGIN)

    def _is_stopped(self, one: _Generation) -> bool:
        tail = str(self._tokenizer.decode(one.tokens[-one.window :]))
        return any(stop in tail for stop in one.stops)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def _device(name: str) -> DeviceName:
    for choice in CHOICES:
        if choice == name:
            return choice
    raise InferError(f"device {name}: want one of {', '.join(CHOICES)}")


def _dtype(name: str) -> str:
    if name not in model_folder.DTYPES:
        raise InferError(f"dtype {name}: want one of {', '.join(model_folder.DTYPES)}")
    return name
