"""Byte streams of plain and compressed files."""

import gzip
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

COMPRESSIONS = (".gz", ".zst")

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class InputStream:
    """The decompressed bytes; `consumed` is the place in the file on disk."""

    stream: BinaryIO
    consumed: Callable[[], int]


@contextmanager
def open_stream(path: Path) -> Iterator[InputStream]:
    """`path` for reading, decompressed by its suffix."""
    with path.open("rb") as raw, _decompressed(raw, path.suffix) as stream:
        yield InputStream(stream, raw.tell)


def advance(stream: BinaryIO, *, to: int) -> None:
    """Go forward to byte `to` from the start, by reading where the stream cannot seek."""
    if stream.seekable():
        stream.seek(to)
        return
    left = to
    while left and (block := stream.read(min(left, _BLOCK))):
        left -= len(block)


@contextmanager
def seekable_file(path: Path) -> Iterator[BinaryIO]:
    """`path` with random access; a compressed file is unpacked into a nameless one."""
    if path.suffix not in COMPRESSIONS:
        with path.open("rb") as plain:
            yield plain
        return
    with open_stream(path) as source, tempfile.TemporaryFile() as unpacked:
        while block := source.stream.read(_BLOCK):
            unpacked.write(block)
        unpacked.seek(0)
        yield cast(BinaryIO, unpacked)


@contextmanager
def _decompressed(raw: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=raw) as unzipped:
            yield cast(BinaryIO, unzipped)
    elif suffix == ".zst":
        import pyarrow as pa

        with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd") as inflated:
            yield cast(BinaryIO, io.BufferedReader(inflated, _BLOCK))
    else:
        yield raw
