"""What the chat tasks share: records to samples to rendered text, and who is refused on the way."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from llm_data.backends.backend import BackendSpec
from llm_data.encode import ColumnDtype, EncodedBatch, EncodedColumn
from llm_data.errors import UsageError
from llm_data.messages import Conversation, Preference, Prompt, Sample, StepRewards
from llm_data.records import (
    Batch,
    Reason,
    Record,
    RecordRefusedError,
    Reject,
    object_of,
    refused,
)
from llm_data.tasks.chat_tokens import ChatTokenizer
from llm_data.tasks.columns import one_sequence_each
from llm_data.tasks.truncation import TooLong
from llm_data.templates import SpecialTokens, Template, TemplateSource, Thinking

# What is compared of a run's texts before a backend is trusted with them.
_FIRST_TEXTS = 64
_FIRST_CHARACTERS = 128 << 10

Kind = TypeVar("Kind", Conversation, Preference, Prompt, StepRewards)
Before = TypeVar("Before")
After = TypeVar("After")


class SampleReader(Protocol):
    """What makes samples of records: small, and it can be pickled. `SampleSpec` is one."""

    def build(self) -> Callable[[Mapping[str, object]], Sample]:
        """The reader: a record's object in, a sample out, or RecordRefusedError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The most tokens a sample may have, None for no limit; more than that is too long."""

    seq_length: int | None = None
    too_long: TooLong = TooLong.DROP


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How conversations become text."""

    template: TemplateSource
    special: SpecialTokens
    thinking: Thinking = Thinking.KEEP

    def compiled(self) -> Template:
        """The template, ready to render."""
        return Template(self.template, self.special)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInput:
    """What every chat task needs: a tokenizer.json, how to read records, the type of ids."""

    tokenizer_file: Path
    samples: SampleReader
    dtype: ColumnDtype
    limit: Limit = Limit()

    def tokenizer(self, backend: BackendSpec) -> ChatTokenizer:
        """The tokenizer, read from its file."""
        return ChatTokenizer.load(self.tokenizer_file, backend)


def expected(sample: Sample, kind: type[Kind]) -> Kind:
    """The sample, if it is of the kind that a task takes."""
    if not isinstance(sample, kind):
        raise UsageError(
            f"the handler of records gives {type(sample).__name__}, the task wants {kind.__name__}"
        )
    return sample


def first_texts(
    batches: Iterable[Batch], texts_of: Callable[[Mapping[str, object]], Iterable[str]]
) -> list[str]:
    """What a run tokenizes first; records that are refused have no texts."""
    found: list[str] = []
    left = _FIRST_CHARACTERS
    for batch in batches:
        refusals = Refusals()
        for _, texts in refusals.passed(refusals.opened(batch), texts_of):
            for text in texts:
                found.append(text[:left])
                left -= len(found[-1])
                if not left or len(found) == _FIRST_TEXTS:
                    return found
    return found


def too_long(size: int, limit: Limit) -> bool:
    """Whether a sample of `size` tokens is to be truncated; refused if it is to be dropped."""
    if limit.seq_length is None or size <= limit.seq_length:
        return False
    if limit.too_long is TooLong.DROP:
        raise RecordRefusedError(
            Reason.TOO_LONG, f"{size} tokens, want at most --seq-length {limit.seq_length}"
        )
    return True


def nothing_left(capacity: int) -> RecordRefusedError:
    """Why a sample is dropped that truncation leaves nothing to learn from."""
    detail = f"truncated to {capacity} tokens, nothing that is learned is left"
    return RecordRefusedError(Reason.TOO_LONG, detail)


class Refusals:
    """The rejects of a batch, in the order of its records."""

    def __init__(self) -> None:
        self._rejects: list[Reject] = []

    def opened(self, batch: Batch) -> list[tuple[Record, Mapping[str, object]]]:
        """The records that are JSON objects."""
        found: list[tuple[Record, Mapping[str, object]]] = []
        for item in batch.items():
            if isinstance(item, Reject):
                self._rejects.append(item)
                continue
            body = object_of(item)
            if isinstance(body, Reject):
                self._rejects.append(body)
            else:
                found.append((item, body))
        return found

    def passed(
        self, pairs: Iterable[tuple[Record, Before]], step: Callable[[Before], After]
    ) -> list[tuple[Record, After]]:
        """What a step makes of those it does not refuse."""
        made: list[tuple[Record, After]] = []
        for record, value in pairs:
            try:
                made.append((record, step(value)))
            except RecordRefusedError as error:
                self._rejects.append(refused(record, error.reason, error.detail))
        return made

    def sorted(self) -> tuple[Reject, ...]:
        """All of them, by their places."""
        return tuple(sorted(self._rejects, key=lambda reject: reject.place[:2]))


def encoded_batch(
    batch: Batch,
    columns: tuple[EncodedColumn, ...],
    *,
    rows: int,
    num_tokens: int,
    refusals: Refusals,
    notes: Mapping[str, int],
) -> EncodedBatch:
    """A batch whose documents are one sequence each."""
    return EncodedBatch(
        columns=columns,
        sizes=one_sequence_each(rows),
        num_documents=rows,
        num_tokens=num_tokens,
        rejects=refusals.sorted(),
        payload_bytes=batch.payload_bytes,
        end=batch.end,
        notes=notes,
    )
