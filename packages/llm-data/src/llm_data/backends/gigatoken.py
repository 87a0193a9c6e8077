"""The `gigatoken` library. It is fast because it remembers words; how many is bounded here."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_data.backends.memory import give_back_memory, resident_bytes
from llm_data.encode import ColumnDtype
from llm_data.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llm_data.backends.backend import TokenIds

INSTALL = "pip install gigatoken"

# A worker forgets its words when it has grown by so much. English needs 30 MB for 90 MB of text.
CACHE_BYTES = 48 << 20
# The same where a process cannot see its own size: text between two such moments.
_BLIND_TEXT_BYTES = 64 << 20


def is_installed() -> bool:
    """Whether the library can be found, without importing it."""
    return find_spec("gigatoken") is not None


class GigatokenBackend:
    """One document a call on this thread: a batch call would import a library of a second's weight.

    Version 0.10.0 has no bound on its cache, so that a growing process builds its tokenizer anew:
    the cache never changes an id.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        *,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._file = tokenizer_file
        self._body = tokenizer_file.read_bytes()
        self._before = tuple(before)
        self._after = tuple(after)
        self._cache_bytes = cache_bytes
        self.num_builds = 0
        self._build()

    def encode(self, texts: Sequence[str], /) -> "Sequence[TokenIds]":
        """The ids of each text, as arrays."""
        encode = self._encode
        assert encode is not None
        found: list[NDArray[np.uint32]] = [encode(text) for text in texts]
        self._text_bytes += sum(map(len, texts))
        if self._has_grown():
            self._build()
        if self._before or self._after:
            return [self._wrapped(ids) for ids in found]
        return found

    def join(self, pieces: "Sequence[TokenIds]", /, *, dtype: ColumnDtype) -> bytes:
        """The arrays end to end."""
        if not pieces:
            return b""
        # Every id fits: the dtype was chosen by the vocabulary.
        return np.concatenate(pieces, dtype=np.dtype(dtype), casting="unsafe").tobytes()

    def _wrapped(self, ids: "NDArray[np.uint32]") -> "NDArray[np.uint32]":
        parts = (self._before, ids, self._after)
        return np.concatenate(parts, dtype=np.uint32, casting="unsafe")

    def _build(self) -> None:
        from gigatoken import Tokenizer

        # The old one goes first: both together would be the peak.
        self._encode = None
        give_back_memory()
        try:
            self._encode = Tokenizer.from_json(self._body).backend.encode
        except BaseException as error:
            # The Rust side raises bare Exception, and its panics are none.
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise DataError(f"{self._file}: gigatoken cannot load it: {error}") from None
        give_back_memory()
        self.num_builds += 1
        self._text_bytes = 0
        self._base_bytes = resident_bytes()

    def _has_grown(self) -> bool:
        if self._base_bytes is None:
            return self._text_bytes > _BLIND_TEXT_BYTES
        return (resident_bytes() or 0) - self._base_bytes > self._cache_bytes
