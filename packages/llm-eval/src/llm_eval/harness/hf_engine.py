"""A transformers model as an engine: lm-eval's tokenization and rules, our passes.

What is asked, cut to the context, and counted as greedy is lm-eval's `hf`; only what is computed
together differs, so scores agree with it to rounding.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_eval.blocks import MAX_ROWS, Block, Prompt, Row, Tokens, plan, plan_prompts
from llm_eval.errors import EvalError
from llm_eval.harness.engine import Answer, Kind, Request, Work
from llm_eval.harness.generation import Continuer, can_continue
from llm_eval.harness.scoring import Ask, Question, Reader, can_share

# The decorator that registers HFLM hides the class from a type checker.
_HFLM: Any = huggingface.HFLM

# Encoded texts at hand: a question's own and those with its choices.
_KEPT_TEXTS = 8


@dataclass(frozen=True, slots=True)
class _Pair:
    """One continuation: what the model reads, and the last tokens it must predict."""

    tokens: Tokens
    targets: Tokens


@dataclass(frozen=True, slots=True)
class _Generation:
    prompts: tuple[Prompt, ...]
    stops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Harness:
    """Requests that lm-eval's own method answers, as one batch."""

    kind: Kind
    requests: tuple[Request, ...]


class HFEngine(_HFLM):
    """Scores with a loaded model; with a model on the `meta` device it can only plan."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=MAX_ROWS,
            max_length=max_length,
        )
        embedding: Any = model.get_input_embeddings()
        self._num_rows = int(embedding.weight.shape[0])
        self._reader = Reader(model)
        self._can_share = can_share(model)
        self._can_continue = can_continue(model)
        self._continuer = Continuer(model, tokenizer)
        self._encoded: dict[Any, list[int]] = {}

    def plan(self, kind: Kind, requests: Sequence[Request]) -> Iterator[Work]:
        """Blocks in the order of the requests, as far as sharing and lengths allow."""
        if kind == "loglikelihood":
            yield from self._plan_pairs([self._pair(*request) for request in requests])
        elif kind == "generate_until":
            yield from self._plan_generations(requests)
        else:
            for number, request in enumerate(requests):
                yield Work((number,), _Harness(kind, (request,)))

    def score(self, work: Work) -> list[Answer]:
        """The answers of one block."""
        task = work.task
        if isinstance(task, Question):
            return [[logprob, int(greedy)] for logprob, greedy in self._reader.score(task)]
        if isinstance(task, _Generation):
            return list(self._generate(task))
        return list(self._by_harness(task))

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """As lm-eval's; a context that comes again for its next choice is not encoded again."""
        key = (string, add_special_tokens, left_truncate_len)
        if key not in self._encoded:
            if len(self._encoded) >= _KEPT_TEXTS:
                self._encoded.pop(next(iter(self._encoded)))
            found = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
            self._require_rows(found, string)
            self._encoded[key] = found
        return list(self._encoded[key])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """As lm-eval's; EvalError where the tokenizer has no template."""
        if self.tokenizer.chat_template is None:
            raise EvalError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template "
                "(tokenizer_config.json or chat_template.jinja); ask without one"
            )
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,  # noqa: ARG002 - lm-eval's signature
        override_bs: int | None = None,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        """Rolling windows of lm-eval, scored as any other rows."""
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        scores: dict[int, tuple[float, bool]] = {}
        for work in self._plan_pairs(pairs):
            scores |= zip(work.indices, self._reader.score(work.task), strict=True)
        return [scores[number] for number in range(len(pairs))]

    def _require_rows(self, tokens: Sequence[int], text: str) -> None:
        """Raise for a token that the model has no embedding of."""
        strays = [token for token in tokens if token >= self._num_rows]
        if strays:
            raise EvalError(
                f"{text[:60]!r}…: token {self.tokenizer.convert_ids_to_tokens(strays[0])!r} "
                f"({strays[0]}) has no row in the model's embedding of {self._num_rows}"
            )

    def _pair(self, context: str, continuation: str) -> _Pair:
        """lm-eval's own split of a pair into tokens (TemplateLM.loglikelihood)."""
        if context:
            read, predicted = self._encode_pair(context, continuation)
        else:
            predicted = self.tok_encode(continuation, add_special_tokens=False)
            read = [self.prefix_token_id]
            if predicted[:1] == read:
                read, predicted = predicted[:1], predicted[1:]
        if not predicted or not read:
            raise EvalError(
                f"nothing to score: continuation {continuation!r} after {context[-40:]!r}"
            )
        return self._cut(read, predicted)

    def _cut(self, context: list[int], continuation: list[int]) -> _Pair:
        """Cut on the left to what the model's context holds."""
        whole = context + continuation
        if len(whole) > self.max_length + 1:
            huggingface.eval_logger.warning(
                f"Combined length of context ({len(context)}) and continuation "
                f"({len(continuation)}) exceeds model's maximum length ({self.max_length}). "
                f"Truncating {len(whole) - self.max_length + 1} tokens from the left."
            )
        return _Pair(tuple(whole[-(self.max_length + 1) :][:-1]), tuple(continuation))

    def _plan_pairs(self, pairs: Sequence[_Pair]) -> Iterator[Work]:
        """One row for all pairs that read the same tokens: a question with one-token choices."""
        rows: dict[Tokens, list[int]] = {}
        for number, pair in enumerate(pairs):
            rows.setdefault(pair.tokens, []).append(number)
        listed = list(rows.items())
        firsts = [
            min(len(tokens) - len(pairs[number].targets) for number in numbers)
            for tokens, numbers in listed
        ]
        shared = [first if self._can_share else 0 for first in firsts]
        planned = [Row(tokens, first) for (tokens, _), first in zip(listed, shared, strict=True)]
        for block in plan(planned):
            members = [listed[number] for number in block.rows]
            indices = tuple(number for _, numbers in members for number in numbers)
            yield Work(indices, _question(block, members, pairs))

    def _plan_generations(self, requests: Sequence[Request]) -> Iterator[Work]:
        """Together what differs only in its prompt and its limit."""
        groups: dict[str, list[int]] = {}
        limits: list[int] = []
        for number, (_, asked) in enumerate(requests):
            options: Any = normalize_gen_kwargs(dict(asked), self.max_gen_toks)
            limits.append(int(options.pop("max_gen_toks")))
            groups.setdefault(json.dumps(options, sort_keys=True), []).append(number)
        for key, numbers in groups.items():
            options = json.loads(key)
            if _is_greedy(options) and self._can_continue:
                yield from self._plan_greedy(requests, numbers, limits, options.get("until"))
                continue
            for start in range(0, len(numbers), MAX_ROWS):
                part = tuple(numbers[start : start + MAX_ROWS])
                chosen = tuple(requests[number] for number in part)
                yield Work(part, _Harness("generate_until", chosen))

    def _plan_greedy(
        self, requests: Sequence[Request], numbers: Sequence[int], limits: Sequence[int], until: Any
    ) -> Iterator[Work]:
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = tuple(handle_stop_sequences(until or [], eos=end))
        prompts: dict[int, Tokens] = {}
        for number in numbers:
            room = self.max_length - limits[number]
            if room <= 0:
                raise EvalError(
                    f"max_gen_toks {limits[number]}: no room in the context of {self.max_length}"
                )
            text = requests[number][0]
            tokens = self.tok_batch_encode([text])[0][0].tolist()[-room:]
            self._require_rows(tokens, text)
            prompts[number] = tuple(tokens) or (self.prefix_token_id,)
        parts = plan_prompts(
            [prompts[number] for number in numbers], [limits[number] for number in numbers]
        )
        for part in parts:
            yield Work(
                tuple(numbers[one.number] for one in part),
                _Generation(tuple(one.prompt for one in part), stops),
            )

    def _generate(self, task: _Generation) -> Iterator[str]:
        found = self._continuer.continue_greedily(
            task.prompts, stops=[stop for stop in task.stops if stop]
        )
        for tokens in found:
            yield postprocess_generated_text(
                generation=self.tok_decode(tokens), stop=list(task.stops), think_end_token=None
            )

    def _by_harness(self, task: _Harness) -> list[Any]:
        """Sampling and rolling windows; the seed follows from the requests, not from the order."""
        text = json.dumps(task.requests, sort_keys=True, default=str)
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        instances = [Instance(task.kind, {}, request, 0) for request in task.requests]
        return getattr(super(), task.kind)(instances, disable_tqdm=True)


def _question(
    block: Block, members: Sequence[tuple[Tokens, list[int]]], pairs: Sequence[_Pair]
) -> Question:
    asks = [
        Ask(
            row,
            len(tokens) - block.shared - len(pairs[number].targets),
            pairs[number].targets,
        )
        for row, (tokens, numbers) in enumerate(members)
        for number in numbers
    ]
    return Question(
        shared=members[0][0][: block.shared],
        rows=tuple(tokens[block.shared :] for tokens, _ in members),
        asks=tuple(asks),
    )


def _is_greedy(options: Any) -> bool:
    return not options.get("do_sample") and float(options.get("temperature") or 0.0) == 0.0
