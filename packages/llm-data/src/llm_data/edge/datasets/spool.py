"""A dataset being written: files that grow, are cut back after a kill, and end as a pair.

Light on imports: a run starts writing before it needs numpy.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

from llm_data.edge.durable import sync
from llm_data.errors import DataError
from llm_data.formats.manifest_parts import FileEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What a spool's files are called.
TOKENS_FILE = "tokens.bin"
INDEX_FILE = "index.idx"
LENGTHS_FILE = "lengths.int32"
_SIZES_FILE = "documents.int32"

_BLOCK = 1 << 20

_ITEM_BYTES = MappingProxyType(
    {"uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "float32": 4}
    | {"int64": 8, "float64": 8}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolMark:
    """How much of a spool is whole; `sha256` is of the token bytes."""

    num_documents: int = 0
    num_sequences: int = 0
    num_tokens: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Spool:
    """A dataset being written: tokens, lengths and document sizes in a folder of their own.

    Memory stays flat: the tables are files until `write_index` streams them together.
    """

    def __init__(
        self, folder: Path, *, dtype: "np.dtype[np.generic] | str", mark: SpoolMark
    ) -> None:
        self.tokens_path = folder / TOKENS_FILE
        self.index_path = folder / INDEX_FILE
        # A numpy type is shown as its name.
        self._dtype = str(dtype)
        self._item_bytes = _ITEM_BYTES[self._dtype]
        self._done = mark
        folder.mkdir(parents=True, exist_ok=True)
        self._lengths_path = folder / LENGTHS_FILE
        self._sizes_path = folder / _SIZES_FILE
        self._hash = hash_of(self.tokens_path, mark.num_tokens * self._item_bytes)
        if self._hash.hexdigest() != mark.sha256:
            raise DataError(
                f"{self.tokens_path}: not what was written before; --no-resume starts over"
            )
        self._tokens = _open_at(self.tokens_path, mark.num_tokens * self._item_bytes)
        self._lengths = _open_at(self._lengths_path, mark.num_sequences * 4)
        self._sizes = _open_at(self._sizes_path, mark.num_documents * 4)

    def append(self, tokens: bytes, *, lengths: bytes, sizes: bytes) -> None:
        """Documents end to end: token bytes, int32 sequence lengths, int32 sequences each."""
        self._tokens.write(tokens)
        self._lengths.write(lengths)
        self._sizes.write(sizes)
        self._hash.update(tokens)
        self._done = SpoolMark(
            num_documents=self._done.num_documents + len(sizes) // 4,
            num_sequences=self._done.num_sequences + len(lengths) // 4,
            num_tokens=self._done.num_tokens + len(tokens) // self._item_bytes,
        )

    def mark(self) -> SpoolMark:
        """What is whole and on the disk now."""
        for stream in (self._tokens, self._lengths, self._sizes):
            sync(stream)
        return SpoolMark(
            num_documents=self._done.num_documents,
            num_sequences=self._done.num_sequences,
            num_tokens=self._done.num_tokens,
            sha256=self._hash.copy().hexdigest(),
        )

    def write_index(self) -> dict[str, FileEntry]:
        """Write the index and close; the entries of both files."""
        mark = self.mark()
        self.close()
        digest, size = hashlib.sha256(), 0
        with self.index_path.open("wb") as stream:
            for piece in self._index_pieces(mark):
                digest.update(piece)
                size += stream.write(piece)
            sync(stream)
        return {
            "bin": FileEntry(bytes=mark.num_tokens * self._item_bytes, sha256=mark.sha256),
            "idx": FileEntry(bytes=size, sha256=digest.hexdigest()),
        }

    def close(self) -> None:
        """Close the files; safe to call twice."""
        for stream in (self._tokens, self._lengths, self._sizes):
            stream.close()

    def _index_pieces(self, mark: SpoolMark) -> Iterator[bytes]:
        import numpy as np

        from llm_data.formats.indexed import pack_header, pointers_of

        dtype = np.dtype(self._dtype)
        yield pack_header(dtype, num_sequences=mark.num_sequences, num_documents=mark.num_documents)
        for block in _int32_blocks(self._lengths_path):
            yield block.tobytes()
        end = 0
        for block in _int32_blocks(self._lengths_path):
            pointers, end = pointers_of(block, itemsize=self._item_bytes, start=end)
            yield pointers.tobytes()
        yield np.zeros(1, dtype="<i8").tobytes()
        end = 0
        for block in _int32_blocks(self._sizes_path):
            ends = np.cumsum(block, dtype=np.int64) + end
            end = int(ends[-1])
            yield ends.tobytes()


def hash_of(path: Path, size: int) -> "hashlib._Hash":
    """The SHA-256 of a file's first bytes, still open for more."""
    digest = hashlib.sha256()
    if size:
        if not path.exists():
            raise DataError(f"{path}: missing, want {size} bytes; --no-resume starts over")
        with path.open("rb") as stream:
            while size and (block := stream.read(min(size, _BLOCK))):
                digest.update(block)
                size -= len(block)
    return digest


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open for appending after the first `size` bytes; what a killed run left behind is cut."""
    stream = path.open("r+b" if path.exists() else "w+b")
    found = stream.seek(0, os.SEEK_END)
    if found < size:
        stream.close()
        raise DataError(f"{path}: {found} bytes, want {size}; --no-resume starts over")
    stream.truncate(size)
    stream.seek(size)
    return stream


def _int32_blocks(path: Path) -> "Iterator[NDArray[np.int32]]":
    import numpy as np

    with path.open("rb") as stream:
        while block := stream.read(4 * _BLOCK):
            yield np.frombuffer(block, dtype="<i4")
