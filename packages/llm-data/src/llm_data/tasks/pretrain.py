"""Pretraining: a record's text as one document. Light on imports: every worker pays for them."""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from llm_data.backends.backend import Backend, BackendSpec, TokenIds
from llm_data.encode import Column, EncodedBatch, EncodedColumn
from llm_data.records import (
    Batch,
    Place,
    Reason,
    Record,
    RecordRefusedError,
    Reject,
    object_of,
    refused,
    text_of,
)
from llm_data.tokenizer import TokenDtype

# What is compared of a run's documents before a backend is trusted with them.
_SAMPLE_DOCUMENTS = 64
_SAMPLE_CHARACTERS = 128 << 10


class TextReader(Protocol):
    """What makes a text of a whole record: small, and it can be pickled.

    The function may raise RecordRefusedError.
    """

    def build(self) -> Callable[[Mapping[str, object]], str]:
        """The function."""
        ...


class Splitter(Protocol):
    """A text cut into sentences; together they are what is tokenized."""

    def split(self, text: str, /) -> Sequence[str]:
        """The sentences in order."""
        ...


class SplitterSpec(Protocol):
    """How to make a splitter in another process: small, and it can be pickled."""

    def build(self) -> Splitter:
        """The splitter."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSpec:
    """How to make a pretraining encoder in another process.

    `key` names the column, and the field that holds the text unless `text` reads the whole
    record. With `sentences` a document is a sequence a sentence; `eod_id` ends the last.
    """

    tokenizer_file: Path
    key: str
    eod_id: int | None
    dtype: TokenDtype
    backend: BackendSpec = field(default_factory=BackendSpec)
    text: TextReader | None = None
    sentences: SplitterSpec | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """The one column, named after the key."""
        return (Column(name=self.key, dtype=self.dtype),)

    def build(self) -> "PretrainEncoder":
        """The encoder; reads the tokenizer file."""
        return PretrainEncoder(
            self.backend.load(self.tokenizer_file),
            reader=self._reader(),
            splitter=self.sentences.build() if self.sentences else None,
            eod_id=self.eod_id,
            dtype=self.dtype,
        )

    def first_texts(self, batches: Iterable[Batch]) -> list[str]:
        """What a run of these batches tokenizes first."""
        return _first_texts(batches, self._reader())

    def _reader(self) -> Callable[[Record], str | Reject]:
        if self.text is None:
            return lambda record: text_of(record, key=self.key)
        text = self.text.build()
        return lambda record: _read_whole(record, text)


class PretrainEncoder:
    """A tokenizer with the choices of one run."""

    def __init__(
        self,
        backend: Backend,
        *,
        reader: Callable[[Record], str | Reject],
        splitter: Splitter | None,
        eod_id: int | None,
        dtype: TokenDtype,
    ) -> None:
        self.backend = backend
        self._read = reader
        self._splitter = splitter
        self._end: tuple[int, ...] = () if eod_id is None else (eod_id,)
        self._dtype: TokenDtype = dtype

    def __call__(self, batch: Batch, /) -> EncodedBatch:
        """The batch's documents in order."""
        rejects: list[Reject] = []
        places: list[Place] = []
        documents: list[Sequence[str]] = []
        for item in batch.items():
            found = item if isinstance(item, Reject) else self._read(item)
            if isinstance(found, Reject):
                rejects.append(found)
            else:
                places.append(item.place)
                documents.append(self._splitter.split(found) if self._splitter else (found,))
        pieces, lengths, sizes = self._encoded(documents)
        for place, size in zip(places, sizes, strict=True):
            if not size:
                detail = "the tokenizer gives no tokens for the text"
                rejects.append(Reject(place=place, reason=Reason.EMPTY, detail=detail))
        kept = array("i", filter(None, sizes))
        tokens = self.backend.join(pieces, dtype=self._dtype)
        return EncodedBatch(
            columns=(EncodedColumn(tokens, lengths.tobytes()),),
            sizes=kept.tobytes(),
            num_documents=len(kept),
            num_tokens=sum(lengths),
            rejects=tuple(sorted(rejects, key=lambda reject: reject.place[:2])),
            payload_bytes=batch.payload_bytes,
            end=batch.end,
        )

    def _encoded(
        self, documents: Sequence[Sequence[str]]
    ) -> tuple[list[TokenIds], "array[int]", "array[int]"]:
        """Ids of all documents, a length a sequence, and how many sequences each document has.

        As Megatron does it, a sequence without tokens is none, and the end is the last one's.
        """
        every = iter(self.backend.encode([text for texts in documents for text in texts]))
        pieces: list[TokenIds] = []
        lengths, sizes = array("i"), array("i")
        for texts in documents:
            found = [ids for ids in (next(every) for _ in texts) if len(ids)]
            sizes.append(len(found))
            if found:
                pieces += found
                lengths.extend(map(len, found))
                if self._end:
                    pieces.append(self._end)
                    lengths[-1] += 1
        return pieces, lengths, sizes


def _first_texts(batches: Iterable[Batch], read: Callable[[Record], str | Reject]) -> list[str]:
    texts, left = list[str](), _SAMPLE_CHARACTERS
    for batch in batches:
        for item in batch.items():
            text = item if isinstance(item, Reject) else read(item)
            if isinstance(text, str):
                texts.append(text[:left])
                left -= len(texts[-1])
            if not left or len(texts) == _SAMPLE_DOCUMENTS:
                return texts
    return texts


def _read_whole(record: Record, text: Callable[[Mapping[str, object]], str]) -> str | Reject:
    body = object_of(record)
    if isinstance(body, Reject):
        return body
    try:
        found = text(body)
    except RecordRefusedError as error:
        return refused(record, error.reason, error.detail)
    return found or Reject(place=record.place, reason=Reason.EMPTY, detail="the text is empty")
