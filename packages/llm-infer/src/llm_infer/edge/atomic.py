"""Whole files or none: written under a temporary name, flushed to disk, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import IO


@contextmanager
def atomic_text(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name only when the block ends without an error.

    A symbolic link stays one. Devices and pipes, such as /dev/stdout, are written as it goes.
    """
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "a folder, want the name of a file", str(path))
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
