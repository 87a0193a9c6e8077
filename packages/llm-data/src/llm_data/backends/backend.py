"""A tokenizer behind one small interface, and which one a run uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from llm_data.encode import ColumnDtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TokenIds: TypeAlias = "Sequence[int] | NDArray[np.uint32]"


class BackendName(StrEnum):
    """`hf` is the `tokenizers` library and the reference; `gigatoken` must give the same ids."""

    HF = "hf"
    GIGATOKEN = "gigatoken"


class Backend(Protocol):
    """Texts to ids as `tokenizers` has them, special tokens around each text included."""

    def encode(self, texts: Sequence[str], /) -> Sequence[TokenIds]:
        """The ids of each text, in a form that only `join` of the same backend takes."""
        ...

    def join(self, pieces: Sequence[TokenIds], /, *, dtype: ColumnDtype) -> bytes:
        """Pieces, and tuples of ids between them, end to end as `dtype`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """How to load a backend in another process: small, and it can be pickled.

    `before` and `after` are the special tokens that the tokenizer's post-processor puts around
    every text; `hf` adds them itself.
    """

    name: BackendName = BackendName.HF
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def load(self, tokenizer_file: Path) -> Backend:
        """The backend; a file that it cannot read is a DataError."""
        if self.name is BackendName.GIGATOKEN:
            from llm_data.backends.gigatoken import GigatokenBackend

            return GigatokenBackend(tokenizer_file, before=self.before, after=self.after)
        from llm_data.backends.hf import HfBackend

        return HfBackend(tokenizer_file)


@dataclass(frozen=True, slots=True)
class Question:
    """Texts whose ids are wanted, as the encoder's tokenizer alone gives them."""

    texts: tuple[str, ...]
