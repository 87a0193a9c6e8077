"""The Megatron index file (MMIDIDX, version 1) as bytes.

Layout, little endian: magic (9 bytes), version u64, dtype code u8, sequence count u64,
document-index count u64, then int32 lengths, int64 byte pointers and int64 document indices.
Source: `megatron/core/datasets/indexed_dataset.py`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from llm_data.errors import FormatError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER_BYTES = 34

DTYPE_CODES = MappingProxyType(
    {
        1: np.dtype(np.uint8),
        2: np.dtype(np.int8),
        3: np.dtype(np.int16),
        4: np.dtype(np.int32),
        5: np.dtype(np.int64),
        6: np.dtype(np.float64),
        7: np.dtype(np.float32),
        8: np.dtype(np.uint16),
    }
)

_HEADER = struct.Struct("<9sQBQQ")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The three tables of an index: N sequences in D documents.

    lengths: int32 [N], tokens in each sequence.
    pointers: int64 [N], byte offset of each sequence in the .bin file.
    documents: int64 [D+1], first sequence of each document, then N.
    """

    dtype: np.dtype[np.generic]
    lengths: NDArray[np.int32]
    pointers: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.documents) - 1

    @property
    def num_tokens(self) -> int:
        """Sum of the lengths."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def bin_bytes(self) -> int:
        """Size the .bin file must have: the end of the last sequence."""
        if not self.num_sequences:
            return 0
        return int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize


def dtype_code(dtype: np.dtype[np.generic]) -> int:
    """The one-byte code of an element type."""
    for code, known in DTYPE_CODES.items():
        if known == dtype:
            return code
    raise ValueError(f"no index code for {dtype}; known: {_known_dtypes()}")


def pack_header(dtype: np.dtype[np.generic], *, num_sequences: int, num_documents: int) -> bytes:
    """The first 34 bytes; the document-index count on disk is `num_documents + 1`."""
    return _HEADER.pack(MAGIC, VERSION, dtype_code(dtype), num_sequences, num_documents + 1)


def pointers_of(
    lengths: NDArray[np.int32], *, itemsize: int, start: int = 0
) -> tuple[NDArray[np.int64], int]:
    """Byte offset of each sequence when they lie end to end from `start`, and the end."""
    ends = np.cumsum(lengths, dtype=np.int64) * itemsize + start
    pointers = np.empty(len(lengths), dtype=np.int64)
    if len(lengths):
        pointers[0] = start
        pointers[1:] = ends[:-1]
        return pointers, int(ends[-1])
    return pointers, start


def pack_index(
    dtype: np.dtype[np.generic], *, lengths: NDArray[np.int32], documents: NDArray[np.int64]
) -> bytes:
    """A whole index of sequences that lie end to end."""
    pointers, _ = pointers_of(lengths, itemsize=dtype.itemsize)
    header = pack_header(dtype, num_sequences=len(lengths), num_documents=len(documents) - 1)
    tables = (lengths.astype("<i4"), pointers.astype("<i8"), documents.astype("<i8"))
    return header + b"".join(table.tobytes() for table in tables)


def unpack_index(buffer: bytes | memoryview, *, where: str) -> Index:
    """Views of the tables in `buffer`, after checking the header, the sizes and the ends.

    Constant time: the tables themselves are checked by `check_tables`.
    """
    dtype, num_sequences, num_entries = _unpack_header(buffer, where=where)
    wanted = HEADER_BYTES + 12 * num_sequences + 8 * num_entries
    if len(buffer) != wanted:
        raise FormatError(
            f"{where}: {len(buffer)} bytes, want {wanted} for {num_sequences} sequences and "
            f"{num_entries} document indices{_multimodal_hint(len(buffer) - wanted, num_sequences)}"
        )
    lengths_end = HEADER_BYTES + 4 * num_sequences
    index = Index(
        dtype=dtype,
        lengths=np.frombuffer(buffer, "<i4", count=num_sequences, offset=HEADER_BYTES),
        pointers=np.frombuffer(buffer, "<i8", count=num_sequences, offset=lengths_end),
        documents=np.frombuffer(
            buffer, "<i8", count=num_entries, offset=lengths_end + 8 * num_sequences
        ),
    )
    _check_ends(index, where=where)
    return index


def check_tables(index: Index, *, where: str) -> None:
    """Refuse tables whose pointers do not lie end to end or whose documents run backwards."""
    end = 0
    for first, lengths in _blocks(index.lengths):
        if len(bad := np.flatnonzero(lengths < 0)):
            at = first + int(bad[0])
            raise FormatError(f"{where}: sequence {at} has length {lengths[bad[0]]}, want ≥ 0")
        wanted, end = pointers_of(lengths, itemsize=index.dtype.itemsize, start=end)
        found = index.pointers[first : first + len(lengths)]
        if len(bad := np.flatnonzero(found != wanted)):
            at = int(bad[0])
            raise FormatError(
                f"{where}: sequence {first + at} starts at byte {found[at]}, want {wanted[at]}: "
                "sequences must lie end to end"
            )
    steps = np.diff(index.documents)
    if len(bad := np.flatnonzero(steps < 0)):
        at = int(bad[0])
        raise FormatError(
            f"{where}: document {at} starts at sequence {index.documents[at]} and the next at "
            f"{index.documents[at + 1]}: document indices must not decrease"
        )


def _unpack_header(
    buffer: bytes | memoryview, *, where: str
) -> tuple[np.dtype[np.generic], int, int]:
    if bytes(buffer[: len(MAGIC)]) != MAGIC:
        raise FormatError(f"{where}: magic {bytes(buffer[:9])!r}, want {MAGIC!r} (Megatron index)")
    if len(buffer) < HEADER_BYTES:
        raise FormatError(f"{where}: {len(buffer)} bytes, want a header of {HEADER_BYTES}")
    _, version, code, num_sequences, num_entries = _HEADER.unpack_from(buffer)
    if version != VERSION:
        raise FormatError(f"{where}: version {version}, want {VERSION}")
    if code not in DTYPE_CODES:
        raise FormatError(f"{where}: dtype code {code}, want one of {_known_dtypes()}")
    return DTYPE_CODES[code], num_sequences, num_entries


def _check_ends(index: Index, *, where: str) -> None:
    if not len(index.documents) or index.documents[0] != 0:
        found = list(index.documents[:1])
        raise FormatError(f"{where}: document indices start with {found}, want [0]")
    if index.documents[-1] != index.num_sequences:
        raise FormatError(
            f"{where}: the last document ends at sequence {index.documents[-1]}, "
            f"want {index.num_sequences}"
        )


def _multimodal_hint(surplus: int, num_sequences: int) -> str:
    if surplus and surplus == num_sequences:
        return "; the extra bytes look like Megatron's multimodal modes, which are not text"
    return ""


def _known_dtypes() -> str:
    return ", ".join(f"{code} ({dtype.name})" for code, dtype in DTYPE_CODES.items())


def _blocks(table: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.int32]]]:
    for first in range(0, len(table), _BLOCK):
        yield first, table[first : first + _BLOCK]
