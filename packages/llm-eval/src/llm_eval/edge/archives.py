"""Members of tar, zip and gzip files, of folders, and plain files, one after another."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_eval.errors import EvalError

_DAMAGE = (EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class File:
    """A member: its path inside what holds it, and its bytes."""

    path: str
    content: bytes


def members(source: Path) -> Iterator[File]:
    """Every file in `source`, in the order of the archive, or sorted for a folder.

    Nothing is unpacked to disk, so that a path like `../../x` in an archive does no harm.
    Raises EvalError where the archive is cut off or damaged.
    """
    if source.is_dir():
        yield from _of_folder(source)
    elif not source.is_file():
        raise EvalError(f"{source}: no such file or folder")
    elif zipfile.is_zipfile(source):
        yield from _guarded(source, _of_zip(source))
    elif source.suffix == ".gz" and not source.name.endswith(".tar.gz"):
        yield from _guarded(source, _of_gzip(source))
    elif source.name.endswith((".tar", ".tar.gz", ".tgz")):
        yield from _guarded(source, _of_tar(source))
    elif source.suffix == ".zip":
        raise EvalError(f"{source}: not a zip file; cut off while it was fetched?")
    else:
        yield File(source.name, source.read_bytes())


def _of_folder(folder: Path) -> Iterator[File]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield File(path.relative_to(folder).as_posix(), path.read_bytes())


def _of_zip(source: Path) -> Iterator[File]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield File(info.filename, archive.read(info))


def _of_gzip(source: Path) -> Iterator[File]:
    yield File(source.stem, gzip.decompress(source.read_bytes()))


def _of_tar(source: Path) -> Iterator[File]:
    if source.suffix == ".tar":
        _require_end_of_tar(source)
    with tarfile.open(source) as archive:
        for info in archive:
            stream = archive.extractfile(info) if info.isfile() else None
            if stream is not None:
                yield File(info.name, stream.read())


def _require_end_of_tar(source: Path) -> None:
    """A tar ends in two empty blocks; tarfile itself takes one cut between members for whole."""
    with source.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        if any(stream.read()) or size < 2 * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end-of-archive mark")


def _guarded(source: Path, files: Iterator[File]) -> Iterator[File]:
    """Errors of the archive's reader as ours; those of who takes the files are let through."""
    while True:
        try:
            file = next(files)
        except StopIteration:
            return
        except _DAMAGE as error:
            raise EvalError(f"{source}: cut off or damaged: {error}") from None
        yield file
