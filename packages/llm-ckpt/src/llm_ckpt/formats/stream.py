"""Files that appear whole or not at all: written to a temporary name, hashed, renamed."""

import errno
import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from llm_ckpt.errors import CheckpointError
from llm_ckpt.formats.pipeline import Pipeline
from llm_ckpt.formats.slab import byte_view

_PIECE_BYTES = 256 << 10
_COPY_BYTES = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Pages that are not needed any more are written first (Linux only).
_START_WRITING = getattr(os, "POSIX_FADV_DONTNEED", None)


@dataclass(frozen=True, slots=True)
class FileFact:
    """Length and SHA-256 of a finished file; the latter is empty where nobody asked for it."""

    bytes: int
    sha256: str


class NewFile:
    """A sequential binary file; `commit` makes it durable under its name.

    `planned_bytes` is only told in the error when the disk is full.
    """

    def __init__(
        self, path: Path, *, is_hashed: bool = True, planned_bytes: int | None = None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._planned = planned_bytes
        # One name, so that what a killed run left is written over and never stays behind.
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._disk = _Disk(self._temporary)
        self._hash = hashlib.sha256() if is_hashed else None
        hashing = [self._hash.update] if self._hash else []
        self._pipeline = Pipeline([*hashing, self._disk.append])
        self._position = 0
        self._is_open = True

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, data: bytes | bytearray | memoryview, *, is_checked: bool = False) -> int:
        """Append all of `data`; what is checked counts in the next `crc32`."""
        view = memoryview(data).cast("B")
        with self._naming_a_full_disk():
            self._pipeline.append(view, is_checked=is_checked)
        self._position += len(view)
        return len(view)

    def crc32(self) -> int:
        """The crc of what was checked since the last call."""
        return self._pipeline.crc32()

    def write_tensor(self, tensor: Tensor, dtype: torch.dtype | None = None) -> None:
        """Append a tensor's bytes in row-major order, cast to `dtype`."""
        for view in byte_views(tensor, dtype or tensor.dtype):
            self.write(view)

    def commit(self, *, is_durable: bool = True) -> FileFact:
        """Rename to the final name, after a sync unless `sync_file` is called on it later."""
        with self._naming_a_full_disk():
            self._pipeline.finish()
            if is_durable:
                self._disk.sync()
            self._disk.close()
        self._is_open = False
        os.replace(self._temporary, self.path)
        return FileFact(self._position, self._hash.hexdigest() if self._hash else "")

    def abandon(self) -> None:
        """Remove what was written."""
        self._is_open = False
        self._pipeline.abandon()
        self._disk.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_open:
            self.abandon()

    @contextmanager
    def _naming_a_full_disk(self) -> Generator[None]:
        """Turns "no space left" into an error that says which file and how much."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            space = os.statvfs(self.path.parent)
            wanted = "" if self._planned is None else f" of about {self._planned}"
            raise CheckpointError(
                f"{self.path}: {os.strerror(error.errno)} after {self._disk.length}{wanted} "
                f"bytes; {space.f_bavail * space.f_frsize} bytes are free"
            ) from None


def byte_views(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """A tensor's bytes in row-major order, cast to `dtype`; copied, if at all, by a few rows."""
    if not tensor.numel():
        return
    if tensor.is_contiguous() and tensor.dtype == dtype:
        yield byte_view(tensor)
        return
    if tensor.dim() == 0:
        yield byte_view(tensor.to(dtype))
        return
    row_bytes = tensor.numel() // tensor.shape[0] * max(dtype.itemsize, tensor.itemsize)
    height = max(1, _COPY_BYTES // row_bytes)
    for start in range(0, tensor.shape[0], height):
        yield byte_view(tensor[start : start + height].to(dtype).contiguous())


def write_file(path: Path, data: bytes, *, is_durable: bool = True) -> FileFact:
    """Write a small file atomically."""
    with NewFile(path) as file:
        file.write(data)
        return file.commit(is_durable=is_durable)


def sync_file(path: Path) -> None:
    """Make a file durable, or the names inside a folder, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> FileFact:
    """Length and SHA-256 of an existing file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileFact(path.stat().st_size, digest.hexdigest())


class _Disk:
    """The file itself. The disk begins with every block at once, not with all of them at the end.

    Pieces are small: ext4 takes those of some megabytes at a third of the speed.
    """

    def __init__(self, path: Path) -> None:
        self.length = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._is_open = True

    def append(self, view: memoryview) -> None:
        """Write all of it."""
        begun, done = self.length, 0
        while done < len(view):
            count = os.write(self._descriptor, view[done : done + _PIECE_BYTES])
            done += count
            self.length += count
        if _START_WRITING is not None:
            os.posix_fadvise(self._descriptor, begun, len(view), _START_WRITING)

    def sync(self) -> None:
        """Return when all of it is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close, once."""
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)
