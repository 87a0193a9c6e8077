"""The `gigatoken` library. It is fast because it remembers words; how many is bounded here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_data.backends.memory import give_back_memory, map_large_blocks, resident_bytes
from llm_data.encode import ColumnDtype
from llm_data.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llm_data.backends.backend import TokenIds

# A worker forgets its words when it has grown by so much since it knew none: English comes to it
# after 50 to 90 MB, Chinese after 25.
CACHE_BYTES = 40 << 20
# Characters between two such moments at least: forgetting takes a quarter of a second.
LEAST_TEXT = 8 << 20
# Characters between two such moments where a process cannot see its own size.
_BLIND_TEXT = 32 << 20


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
        least_text: int = LEAST_TEXT,
    ) -> None:
        self._file = tokenizer_file
        try:
            self._body = tokenizer_file.read_bytes()
        except OSError as error:
            raise DataError(f"{tokenizer_file}: {error.strerror}") from None
        self._before = tuple(before)
        self._after = tuple(after)
        self._cache_bytes = cache_bytes
        self._least_text = least_text
        self.num_builds = 0
        map_large_blocks()
        self._build()

    def encode(self, texts: Sequence[str], /) -> "Sequence[TokenIds]":
        """The ids of each text, as arrays."""
        # Before the old tokenizer has a second name here, which would keep it beside the new one.
        if self._has_grown():
            self._build()
        encode = self._encode
        assert encode is not None
        found: list[NDArray[np.uint32]] = [encode(text) for text in texts]
        self._text += sum(map(len, texts))
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
        # The old one goes first: both together would be the peak.
        self._encode = None
        give_back_memory()
        try:
            from gigatoken import Tokenizer

            self._encode = Tokenizer.from_json(self._body).backend.encode
        except BaseException as error:
            # The Rust side raises bare Exception, and its panics are none.
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise DataError(f"{self._file}: gigatoken cannot load it: {error}") from None
        give_back_memory()
        self.num_builds += 1
        self._text = 0
        self._built_bytes = resident_bytes()

    def _has_grown(self) -> bool:
        if self._text < self._least_text:
            return False
        now = resident_bytes()
        if now is None or self._built_bytes is None:
            return self._text >= _BLIND_TEXT
        return now - self._built_bytes > self._cache_bytes
