"""What a task makes of a batch of records: columns of packed token ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from llm_data.records import Batch, Place, Reject

ColumnDtype = Literal["uint16", "int32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One stream of ids: its own pair of files."""

    name: str
    dtype: ColumnDtype


class EncodedColumn(NamedTuple):
    """Ids end to end, and an int32 length a sequence."""

    tokens: bytes
    lengths: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """The documents of a batch and what gave no document.

    `columns` are in the order of the spec's. `sizes` holds an int32 number of sequences for each
    document. `num_tokens` counts the first column. `notes` counts what a user wants to know and
    what is no reject, such as `truncated`.
    """

    columns: tuple[EncodedColumn, ...]
    sizes: bytes
    num_documents: int
    num_tokens: int
    rejects: tuple[Reject, ...]
    payload_bytes: int
    end: Place
    notes: Mapping[str, int] = field(default_factory=dict[str, int])


class Encoder(Protocol):
    """A tokenizer with the choices of one run."""

    def __call__(self, batch: Batch, /) -> EncodedBatch:
        """The batch's documents in order."""
        ...


@runtime_checkable
class EncoderSpec(Protocol):
    """How to make an encoder in another process: small, and it can be pickled."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What its encoder's batches hold, in this order."""
        ...

    def build(self) -> Encoder:
        """The encoder, loaded in this process."""
        ...
