"""Files that appear whole or not at all: written to a temporary name, hashed, renamed."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor

from llm_ckpt.formats.slab import byte_view


@dataclass(frozen=True, slots=True)
class FileFact:
    """Length and SHA-256 of a finished file."""

    bytes: int
    sha256: str


class NewFile:
    """A sequential binary file; `commit` makes it durable under its name."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # One name, so that what a killed run left is written over and never stays behind.
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file = self._temporary.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._position = 0

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append all of `data`."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])
        self._position += len(view)
        return len(view)

    def write_tensor(self, tensor: Tensor) -> None:
        """Append a tensor's bytes in row-major order."""
        if tensor.numel():
            self.write(byte_view(tensor.contiguous()))

    def flush(self) -> None:
        """Nothing is buffered here; zipfile asks for it."""

    def commit(self) -> FileFact:
        """Sync, then rename to the final name."""
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        return FileFact(self._position, self._hash.hexdigest())

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            self.abandon()


def write_file(path: Path, data: bytes) -> FileFact:
    """Write a small file atomically."""
    with NewFile(path) as file:
        file.write(data)
        return file.commit()


def sync_folder(path: Path) -> None:
    """Make the names inside a folder durable."""
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
