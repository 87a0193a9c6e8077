"""Token datasets on disk: opening, writing and verifying."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from llm_data.edge.durable import sync, sync_folder
from llm_data.errors import DataError, FormatError, listed
from llm_data.formats.indexed import pack_header, pointers_of, unpack_index
from llm_data.formats.manifest import FileEntry, Manifest, unpack_manifest
from llm_data.formats.token_dataset import TokenDataset, check_dataset

# What a spool's files are called.
TOKENS_FILE = "tokens.bin"
INDEX_FILE = "index.idx"
LENGTHS_FILE = "lengths.int32"
_SIZES_FILE = "documents.int32"

_BLOCK = 1 << 20


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

    def __init__(self, folder: Path, *, dtype: np.dtype[np.generic], mark: SpoolMark) -> None:
        self.tokens_path = folder / TOKENS_FILE
        self.index_path = folder / INDEX_FILE
        self._dtype = dtype
        self._done = mark
        folder.mkdir(parents=True, exist_ok=True)
        self._lengths_path = folder / LENGTHS_FILE
        self._sizes_path = folder / _SIZES_FILE
        self._hash = _hash_of(self.tokens_path, mark.num_tokens * dtype.itemsize)
        if self._hash.hexdigest() != mark.sha256:
            raise DataError(
                f"{self.tokens_path}: not what was written before; --no-resume starts over"
            )
        self._tokens = _open_at(self.tokens_path, mark.num_tokens * dtype.itemsize)
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
            num_tokens=self._done.num_tokens + len(tokens) // self._dtype.itemsize,
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
            "bin": FileEntry(bytes=mark.num_tokens * self._dtype.itemsize, sha256=mark.sha256),
            "idx": FileEntry(bytes=size, sha256=digest.hexdigest()),
        }

    def close(self) -> None:
        """Close the files; safe to call twice."""
        for stream in (self._tokens, self._lengths, self._sizes):
            stream.close()

    def _index_pieces(self, mark: SpoolMark) -> Iterator[bytes]:
        yield pack_header(
            self._dtype, num_sequences=mark.num_sequences, num_documents=mark.num_documents
        )
        for block in _int32_blocks(self._lengths_path):
            yield block.tobytes()
        end = 0
        for block in _int32_blocks(self._lengths_path):
            pointers, end = pointers_of(block, itemsize=self._dtype.itemsize, start=end)
            yield pointers.tobytes()
        yield np.zeros(1, dtype="<i8").tobytes()
        end = 0
        for block in _int32_blocks(self._sizes_path):
            ends = np.cumsum(block, dtype=np.int64) + end
            end = int(ends[-1])
            yield ends.tobytes()


class TokenDatasetWriter:
    """Writes `<stem>.bin` and `<stem>.idx` as a context; on an error nothing appears.

    The pair has no manifest: `preprocess` writes one, because it knows the tokenizer.
    """

    def __init__(self, stem: Path, *, dtype: np.dtype[np.generic]) -> None:
        self._stem = stem
        self._folder = stem.with_name(f".{stem.name}.writing")
        self._dtype = dtype
        shutil.rmtree(self._folder, ignore_errors=True)
        self._spool = Spool(self._folder, dtype=dtype, mark=SpoolMark())

    def add_document(self, tokens: NDArray[np.integer], *, lengths: Sequence[int] = ()) -> None:
        """One document, as one sequence or cut into sequences of the given lengths."""
        sizes = np.array(lengths or [len(tokens)], dtype="<i4")
        if int(sizes.sum()) != len(tokens):
            raise ValueError(f"lengths sum to {sizes.sum()}, the document has {len(tokens)} tokens")
        limits = np.iinfo(cast("np.dtype[np.integer]", self._dtype))
        if len(tokens) and (tokens.min() < limits.min or tokens.max() > limits.max):
            raise ValueError(f"a token is outside {self._dtype}: {tokens.min()} to {tokens.max()}")
        self._spool.append(
            tokens.astype(self._dtype).tobytes(),
            lengths=sizes.tobytes(),
            sizes=np.array([len(sizes)], dtype="<i4").tobytes(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._spool.write_index()
                self._spool.tokens_path.replace(with_suffix(self._stem, ".bin"))
                self._spool.index_path.replace(with_suffix(self._stem, ".idx"))
                sync_folder(self._stem.parent)
        finally:
            self._spool.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def open_token_dataset(prefix: Path) -> TokenDataset:
    """The dataset at `prefix`, memory mapped; header, sizes and table ends are checked."""
    stem = find_stem(prefix)
    index_path, bin_path = with_suffix(stem, ".idx"), with_suffix(stem, ".bin")
    index = unpack_index(_mapped(index_path), where=str(index_path))
    found = bin_path.stat().st_size
    if found != index.bin_bytes:
        raise FormatError(
            f"{bin_path}: {found} bytes, but {index_path.name} wants {index.bin_bytes}"
        )
    if index.dtype.kind not in "iu":
        raise FormatError(
            f"{index_path}: dtype {index.dtype.name}, want an integer type for tokens"
        )
    dtype = cast("np.dtype[np.integer]", index.dtype)
    # An empty file cannot be mapped.
    tokens = np.memmap(bin_path, dtype=dtype, mode="r") if found else np.empty(0, dtype=dtype)
    return TokenDataset(name=str(stem), index=index, tokens=tokens, manifest=read_manifest(stem))


def read_manifest(stem: Path) -> Manifest | None:
    """The manifest beside a pair, None where there is none."""
    path = with_suffix(stem, ".json")
    return unpack_manifest(path.read_bytes(), where=str(path)) if path.exists() else None


def verify(prefix: Path, *, index_only: bool = False) -> TokenDataset:
    """The dataset after checking every table, token and checksum.

    Raises FormatError with what is wrong first.
    """
    dataset = open_token_dataset(prefix)
    if dataset.manifest is None and not index_only:
        raise FormatError(f"{dataset.name}.json: no manifest; --index-only checks the pair alone")
    check_dataset(dataset)
    for name, entry in (dataset.manifest.files if dataset.manifest else {}).items():
        path = Path(f"{dataset.name}.{name}")
        size = path.stat().st_size
        if size != entry.bytes:
            raise FormatError(f"{path}: {size} bytes, the manifest wants {entry.bytes}")
        if (digest := _hash_of(path, size).hexdigest()) != entry.sha256:
            raise FormatError(f"{path}: sha256 {digest}, the manifest wants {entry.sha256}")
    return dataset


def find_stem(prefix: Path) -> Path:
    """The one dataset `prefix` means: the pair itself, or the only `<prefix>_*_document`."""
    if prefix.suffix in (".bin", ".idx", ".json"):
        prefix = prefix.with_suffix("")
    if _is_pair(prefix):
        return prefix
    pattern = f"{prefix.name}_*_document.idx"
    stems = [path.with_suffix("") for path in sorted(prefix.parent.glob(pattern))]
    if len(stems) == 1 and _is_pair(stems[0]):
        return stems[0]
    if len(stems) > 1:
        raise DataError(f"{prefix}: means {listed(map(str, stems))}; name one")
    stem = stems[0] if stems else prefix
    halves = [f"{stem}{end}" for end in (".bin", ".idx") if not with_suffix(stem, end).exists()]
    also = "" if stems else f", nor {prefix}_*_document.idx"
    raise DataError(f"{prefix}: no token dataset: {' and '.join(halves)} missing{also}")


def with_suffix(stem: Path, suffix: str) -> Path:
    """`stem` plus a suffix, for names that may themselves hold dots."""
    return stem.with_name(stem.name + suffix)


def _is_pair(stem: Path) -> bool:
    return with_suffix(stem, ".idx").is_file() and with_suffix(stem, ".bin").is_file()


def _mapped(path: Path) -> memoryview:
    if not path.stat().st_size:
        return memoryview(b"")
    return np.memmap(path, dtype=np.uint8, mode="r").data


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


def _hash_of(path: Path, size: int) -> "hashlib._Hash":
    digest = hashlib.sha256()
    if size:
        if not path.exists():
            raise DataError(f"{path}: missing, want {size} bytes; --no-resume starts over")
        with path.open("rb") as stream:
            while size and (block := stream.read(min(size, _BLOCK))):
                digest.update(block)
                size -= len(block)
    return digest


def _int32_blocks(path: Path) -> Iterator[NDArray[np.int32]]:
    with path.open("rb") as stream:
        while block := stream.read(4 * _BLOCK):
            yield np.frombuffer(block, dtype="<i4")
