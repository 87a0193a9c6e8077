"""Preferences: two answers to one prompt, each with its ids and labels."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

from llm_data.backends.backend import BackendSpec
from llm_data.encode import Column, EncodedBatch
from llm_data.messages import Conversation, Message, Preference, Sample
from llm_data.records import Batch, Reason, RecordRefusedError
from llm_data.tasks.byte_lengths import Ids
from llm_data.tasks.chat import (
    Refusals,
    Rendering,
    TaskInput,
    encoded_batch,
    expected,
    first_texts,
    nothing_left,
    too_long,
)
from llm_data.tasks.chat_tokens import ChatTokenizer, ChatTokens
from llm_data.tasks.columns import IdColumn, LabelColumn, labels_column
from llm_data.tasks.truncation import fit
from llm_data.templates import Rendered, Span, Template


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseSpec:
    """How to make a preference encoder in another process.

    Notes of its batches: `truncated` samples, `loss_tokens` labels of both sides that are not -100.
    """

    source: TaskInput
    rendering: Rendering
    backend: BackendSpec = field(default_factory=BackendSpec)

    @property
    def columns(self) -> tuple[Column, ...]:
        """In the order of the sample dataset's table."""
        dtype = self.source.dtype
        return (
            Column(name="chosen_input_ids", dtype=dtype),
            labels_column("chosen_labels"),
            Column(name="rejected_input_ids", dtype=dtype),
            labels_column("rejected_labels"),
        )

    def build(self) -> "PairwiseEncoder":
        """The encoder; reads the tokenizer file and compiles the template."""
        return PairwiseEncoder(
            self,
            read=self.source.samples.build(),
            template=self.rendering.compiled(),
            tokenizer=self.source.tokenizer(self.backend),
        )

    def first_texts(self, batches: Iterable[Batch]) -> list[str]:
        """What a run of these batches tokenizes first."""
        read = self.source.samples.build()
        template = self.rendering.compiled()
        thinking = self.rendering.thinking

        def texts_of(body: Mapping[str, object]) -> list[str]:
            found = expected(read(body), Preference)
            return [
                template.render(_answered(found.prompt, answer), thinking=thinking).text
                for answer in (found.chosen, found.rejected)
            ]

        return first_texts(batches, texts_of)


class _Answer(NamedTuple):
    """A prompt with one of its answers, and where in the text that answer is."""

    rendered: Rendered
    spans: tuple[Span, ...]


class _Side(NamedTuple):
    ids: Ids
    learned: list[tuple[int, int]]


class _Row(NamedTuple):
    chosen: _Side
    rejected: _Side
    is_truncated: bool


class PairwiseEncoder:
    """A tokenizer and a template with the choices of one run."""

    def __init__(
        self,
        spec: PairwiseSpec,
        *,
        read: Callable[[Mapping[str, object]], Sample],
        template: Template,
        tokenizer: ChatTokenizer,
    ) -> None:
        self._spec = spec
        self._read = read
        self._template = template
        self._tokenizer = tokenizer

    def __call__(self, batch: Batch, /) -> EncodedBatch:
        """The batch's samples in order."""
        refusals = Refusals()
        pairs = refusals.passed(refusals.opened(batch), self._render)
        chosen = self._tokenizer.encode([pair[0].rendered.text for _, pair in pairs])
        rejected = self._tokenizer.encode([pair[1].rendered.text for _, pair in pairs])
        joined = [
            (record, ((pair[0], good), (pair[1], bad)))
            for (record, pair), good, bad in zip(pairs, chosen, rejected, strict=True)
        ]
        rows = refusals.passed(refusals.passed(joined, self._align), self._label)
        sides = {"chosen": (IdColumn(self._spec.source.dtype), LabelColumn())}
        sides["rejected"] = (IdColumn(self._spec.source.dtype), LabelColumn())
        for _, row in rows:
            for (ids, labels), side in zip(sides.values(), row[:2], strict=True):
                ids.append(side.ids)
                labels.append(side.ids, side.learned)
        return encoded_batch(
            batch,
            tuple(column.encoded() for side in sides.values() for column in side),
            rows=len(rows),
            num_tokens=sides["chosen"][0].num_tokens,
            refusals=refusals,
            notes={
                "truncated": sum(row.is_truncated for _, row in rows),
                "loss_tokens": sum(labels.num_learned for _, labels in sides.values()),
            },
        )

    def _render(self, body: Mapping[str, object]) -> tuple[_Answer, _Answer]:
        preference = expected(self._read(body), Preference)
        return (
            self._answer(preference.prompt, preference.chosen),
            self._answer(preference.prompt, preference.rejected),
        )

    def _answer(self, prompt: Conversation, answer: Message) -> _Answer:
        thinking = self._spec.rendering.thinking
        rendered = self._template.render(_answered(prompt, answer), thinking=thinking)
        last = len(prompt.messages)
        spans = tuple(span for span in rendered.spans if span.message == last)
        if not spans:
            raise RecordRefusedError(Reason.NO_TARGET, "the template leaves an answer out")
        return _Answer(rendered, spans)

    def _align(
        self, pair: tuple[tuple[_Answer, Ids | Encoding], tuple[_Answer, Ids | Encoding]]
    ) -> tuple[ChatTokens, ChatTokens]:
        """Both sides; the prompt's tokens are the same in both."""
        (chosen, good), (rejected, bad) = pair
        prompt = chosen.rendered.text[: chosen.spans[0].start]
        if prompt != rejected.rendered.text[: rejected.spans[0].start]:
            raise RecordRefusedError(
                Reason.UNPROVEN_MASK, "the template writes another prompt before the other answer"
            )
        first = self._tokenizer.align(_only(chosen), good)
        second = self._tokenizer.align(_only(rejected), bad)
        if not np.array_equal(_prompt_of(first), _prompt_of(second)):
            # One answer joins a token of the prompt, the other does not.
            first = self._tokenizer.cut(_only(chosen), at=[len(prompt)])
            second = self._tokenizer.cut(_only(rejected), at=[len(prompt)])
        return first, second

    def _label(self, pair: tuple[ChatTokens, ChatTokens]) -> _Row:
        limit = self._spec.source.limit
        longest = max(len(tokens.ids) for tokens in pair)
        is_truncated = too_long(longest, limit)
        if is_truncated:
            assert limit.seq_length is not None
            pair = _truncated(pair, limit.seq_length)
        sides = [_side(tokens) for tokens in pair]
        if not all(side.learned for side in sides):
            if limit.seq_length is not None and is_truncated:
                raise nothing_left(limit.seq_length)
            raise RecordRefusedError(Reason.NO_TARGET, "an answer has no token that is learned")
        return _Row(sides[0], sides[1], is_truncated)


def _answered(prompt: Conversation, answer: Message) -> Conversation:
    return Conversation(messages=(*prompt.messages, answer), tools=prompt.tools)


def _only(answer: _Answer) -> Rendered:
    return Rendered(answer.rendered.text, answer.spans)


def _prompt_of(tokens: ChatTokens) -> Ids:
    return tokens.ids[: tokens.spans[0].start]


def _side(tokens: ChatTokens) -> _Side:
    pairs = [(max(span.start, 1), span.end) for span in tokens.spans]
    return _Side(tokens.ids, [(start, end) for start, end in pairs if end > start])


def _truncated(pair: tuple[ChatTokens, ChatTokens], capacity: int) -> tuple[ChatTokens, ChatTokens]:
    """The rule of one turn, with the longer answer's length for both; text after them goes."""
    prompt = pair[0].spans[0].start
    answers = [tokens.spans[-1].end - prompt for tokens in pair]
    kept = fit(prompt, max(answers), capacity=capacity)

    def shortened(tokens: ChatTokens, answer: int) -> ChatTokens:
        end = prompt + min(kept.answer, answer)
        removed = prompt - kept.prompt
        spans = (
            span._replace(start=min(span.start, end) - removed, end=min(span.end, end) - removed)
            for span in tokens.spans
        )
        ids = np.concatenate((tokens.ids[: kept.prompt], tokens.ids[prompt:end]))
        return ChatTokens(ids, tuple(spans))

    return shortened(pair[0], answers[0]), shortened(pair[1], answers[1])
