"""Files that are either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llm_data.errors import DataError


def sync(stream: BinaryIO) -> None:
    """Everything written so far is on the disk when this returns."""
    stream.flush()
    os.fsync(stream.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """`path` holds `data` or what it held before, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        sync(stream)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing_to(folder: Path, *, afterwards: str) -> Iterator[None]:
    """Say where a write failed, on a full disk for one: the operating system does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise DataError(f"{folder}: {error.strerror or error}; {afterwards}") from error


def with_suffix(stem: Path, suffix: str) -> Path:
    """`stem` plus a suffix, for names that may themselves hold dots."""
    return stem.with_name(stem.name + suffix)
