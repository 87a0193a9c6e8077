"""Pretraining: a record's text as one document. Light on imports: every worker pays for them."""

from array import array
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tokenizers import Tokenizer

from llm_data.encode import Column, EncodedBatch, EncodedColumn
from llm_data.errors import DataError
from llm_data.records import Batch, Place, Reason, Reject, text_of
from llm_data.tokenizer import TokenDtype

_TYPECODES = MappingProxyType({"uint16": "H", "int32": "i"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSpec:
    """How to make a pretraining encoder in another process."""

    tokenizer_file: Path
    key: str
    eod_id: int | None
    dtype: TokenDtype

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(name=self.key, dtype=self.dtype),)

    def build(self) -> "PretrainEncoder":
        """The encoder; reads the tokenizer file."""
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        except Exception as error:  # noqa: BLE001 - the Rust side raises bare Exception
            raise DataError(f"{self.tokenizer_file}: not a tokenizer: {error}") from None
        # A tokenizer saved with truncation would silently cut documents.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return PretrainEncoder(tokenizer, self)


class PretrainEncoder:
    """A tokenizer with the choices of one run."""

    def __init__(self, tokenizer: Tokenizer, spec: PretrainSpec) -> None:
        self._tokenizer = tokenizer
        self._spec = spec

    def __call__(self, batch: Batch, /) -> EncodedBatch:
        """The batch's documents in order."""
        texts: list[str] = []
        places: list[Place] = []
        rejects: list[Reject] = []
        for item in batch.items:
            found = item if isinstance(item, Reject) else text_of(item, key=self._spec.key)
            if isinstance(found, Reject):
                rejects.append(found)
            else:
                texts.append(found)
                places.append(item.place)
        tokens: array[int] = array(_TYPECODES[self._spec.dtype])
        lengths = array("i")
        for place, encoding in zip(places, self._tokenizer.encode_batch_fast(texts), strict=True):
            ids = encoding.ids
            if not ids:
                detail = "the tokenizer gives no tokens for the text"
                rejects.append(Reject(place=place, reason=Reason.EMPTY, detail=detail))
                continue
            if self._spec.eod_id is not None:
                ids.append(self._spec.eod_id)
            tokens.extend(ids)
            lengths.append(len(ids))
        return EncodedBatch(
            columns=(EncodedColumn(tokens.tobytes(), lengths.tobytes()),),
            sizes=array("i", [1] * len(lengths)).tobytes(),
            num_documents=len(lengths),
            num_tokens=len(tokens),
            rejects=tuple(rejects),
            payload_bytes=batch.payload_bytes,
            end=batch.items[-1].place,
        )
