"""Fine-tuning on conversations: ids, a mask of ones, and labels where an assistant speaks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from tokenizers import Encoding

from llm_data.backends.backend import BackendSpec
from llm_data.encode import Column, EncodedBatch
from llm_data.messages import Conversation, Sample
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
from llm_data.tasks.truncation import truncate_turns
from llm_data.templates import Rendered, Template


class Loss(StrEnum):
    """Which tokens are learned: every answer, only the last one (`--mask-history`), or all but the
    first token (`--train-on-prompt`). Turns that a record marks as not trained never are.
    """

    ANSWERS = "answers"
    LAST_ANSWER = "last-answer"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSpec:
    """How to make a fine-tuning encoder in another process.

    Notes of its batches: `truncated` samples, `loss_tokens` labels that are not -100.
    """

    source: TaskInput
    rendering: Rendering
    loss: Loss = Loss.ANSWERS
    backend: BackendSpec = field(default_factory=BackendSpec)

    @property
    def columns(self) -> tuple[Column, ...]:
        """In the order of the sample dataset's table."""
        dtype = self.source.dtype
        return (
            Column(name="input_ids", dtype=dtype),
            Column(name="attention_mask", dtype=dtype),
            labels_column("labels"),
        )

    def build(self) -> "SftEncoder":
        """The encoder; reads the tokenizer file and compiles the template."""
        return SftEncoder(
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
            return [template.render(expected(read(body), Conversation), thinking=thinking).text]

        return first_texts(batches, texts_of)


class _Rendered(NamedTuple):
    rendered: Rendered
    untrained: frozenset[int]


class _Tokens(NamedTuple):
    tokens: ChatTokens
    untrained: frozenset[int]


class _Row(NamedTuple):
    ids: Ids
    learned: list[tuple[int, int]]
    is_truncated: bool


class SftEncoder:
    """A tokenizer and a template with the choices of one run."""

    def __init__(
        self,
        spec: SftSpec,
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
        rendered = refusals.passed(refusals.opened(batch), self._render)
        encodings = self._tokenizer.encode([found.rendered.text for _, found in rendered])
        joined = [
            (record, (found, encoding))
            for (record, found), encoding in zip(rendered, encodings, strict=True)
        ]
        rows = refusals.passed(refusals.passed(joined, self._align), self._label)
        ids, labels = IdColumn(self._spec.source.dtype), LabelColumn()
        for _, row in rows:
            ids.append(row.ids)
            labels.append(row.ids, row.learned)
        return encoded_batch(
            batch,
            (ids.encoded(), ids.ones(), labels.encoded()),
            rows=len(rows),
            num_tokens=ids.num_tokens,
            refusals=refusals,
            notes={
                "truncated": sum(row.is_truncated for _, row in rows),
                "loss_tokens": labels.num_learned,
            },
        )

    def _render(self, body: Mapping[str, object]) -> _Rendered:
        conversation = expected(self._read(body), Conversation)
        untrained = frozenset(
            number for number, turn in enumerate(conversation.messages) if not turn.is_trained
        )
        thinking = self._spec.rendering.thinking
        return _Rendered(self._template.render(conversation, thinking=thinking), untrained)

    def _align(self, found: tuple[_Rendered, Ids | Encoding]) -> _Tokens:
        (rendered, untrained), encoding = found
        return _Tokens(self._tokenizer.align(rendered, encoding), untrained)

    def _label(self, found: _Tokens) -> _Row:
        tokens, untrained = found
        whole = self._learned(tokens, untrained)
        if not whole:
            raise RecordRefusedError(
                Reason.NO_TARGET, "no token is learned: no assistant's turn that is trained"
            )
        limit = self._spec.source.limit
        if not too_long(len(tokens.ids), limit):
            return _Row(tokens.ids, whole, is_truncated=False)
        assert limit.seq_length is not None
        newest_first = self._spec.loss is Loss.LAST_ANSWER
        shortened = truncate_turns(tokens, limit.seq_length, newest_first=newest_first)
        learned = self._learned(shortened, untrained)
        if not learned:
            raise nothing_left(limit.seq_length)
        return _Row(shortened.ids, learned, is_truncated=True)

    def _learned(self, tokens: ChatTokens, untrained: frozenset[int]) -> list[tuple[int, int]]:
        """Stretches of learned positions. Nothing comes before the first token to predict it."""
        spans = tokens.spans
        size = len(tokens.ids)
        match self._spec.loss:
            case Loss.ANSWERS:
                wanted = [span[:2] for span in spans if span.message not in untrained]
            case Loss.LAST_ANSWER:
                last = max((span.message for span in spans), default=-1)
                found = (span for span in spans if span.message == last)
                wanted = [span[:2] for span in found if last not in untrained]
            case Loss.EVERYTHING:
                left_out = [span[:2] for span in spans if span.message in untrained]
                borders = [0, *(border for pair in left_out for border in pair), size]
                wanted = list(zip(borders[::2], borders[1::2], strict=True))
        return [(max(start, 1), end) for start, end in wanted if end > max(start, 1)]
