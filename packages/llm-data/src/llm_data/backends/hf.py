"""The `tokenizers` library. Light on imports: every worker pays for them."""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer

from llm_data.encode import ColumnDtype
from llm_data.errors import DataError

if TYPE_CHECKING:
    from llm_data.backends.backend import TokenIds

_TYPECODES: Mapping[ColumnDtype, str] = MappingProxyType({"uint16": "H", "int32": "i"})


def load_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer without its truncation and padding, which would silently change documents."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the Rust side raises bare Exception
        raise DataError(f"{file}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class HfBackend:
    """Batches without offsets, which is what `encode_batch_fast` saves."""

    def __init__(self, tokenizer_file: Path) -> None:
        self.tokenizer = load_tokenizer(tokenizer_file)

    def encode(self, texts: Sequence[str], /) -> "Sequence[TokenIds]":
        """The ids of each text, as lists."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def join(self, pieces: "Sequence[TokenIds]", /, *, dtype: ColumnDtype) -> bytes:
        """The lists end to end."""
        tokens: array[int] = array(_TYPECODES[dtype])
        for piece in cast("Sequence[list[int]]", pieces):
            tokens.extend(piece)
        return tokens.tobytes()
