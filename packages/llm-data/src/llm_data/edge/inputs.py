"""The files named by INPUT arguments, in order."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from llm_data.edge.streams import COMPRESSIONS
from llm_data.errors import DataError, UsageError, listed
from llm_data.formats.manifest import Source


class Kind(StrEnum):
    """A file format that can be read."""

    TEXT = "text"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


KINDS = MappingProxyType(
    {
        ".txt": Kind.TEXT,
        ".py": Kind.TEXT,
        ".jsonl": Kind.JSONL,
        ".ndjson": Kind.JSONL,
        ".json": Kind.JSON,
        ".csv": Kind.CSV,
        ".parquet": Kind.PARQUET,
        ".arrow": Kind.ARROW,
        ".feather": Kind.ARROW,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file to read."""

    path: Path
    kind: Kind
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Every file of a run in order; `ignored` counts what folders held besides, by suffix."""

    files: tuple[InputFile, ...]
    sources: tuple[Source, ...]
    ignored: dict[str, int]

    @property
    def bytes(self) -> int:
        """Size on disk of all files."""
        return sum(source.bytes for source in self.sources)


def find_inputs(
    arguments: Sequence[Path], *, patterns: Sequence[str] = (), output_stem: Path | None = None
) -> Inputs:
    """Files as given, folders in sorted order; what a run writes at `output_stem` is left out."""
    files: list[InputFile] = []
    sources: list[Source] = []
    ignored: Counter[str] = Counter()
    for argument in arguments:
        if argument.is_dir():
            found = _folder(argument, patterns, output_stem, ignored)
        elif argument.exists():
            found = [_named_file(argument, patterns)]
        else:
            raise UsageError(f"{argument}: no such file or folder")
        files += found
        sources.append(_source(argument, found))
    return Inputs(files=tuple(files), sources=tuple(sources), ignored=dict(ignored))


def kind_of(path: Path) -> Kind | None:
    """The format a file's suffix names, whether compressed or not."""
    return KINDS.get(_bare_suffix(path))


def _named_file(path: Path, patterns: Sequence[str]) -> InputFile:
    kind = kind_of(path) or (Kind.TEXT if _matches(path.name, path.name, patterns) else None)
    if kind is None:
        raise UsageError(
            f"{path}: unknown suffix {_bare_suffix(path)!r}, want {listed(KINDS, most=20)}; "
            f"--pattern '*{_bare_suffix(path)}' reads it as plain text"
        )
    return InputFile(path=path, kind=kind, bytes=path.stat().st_size)


def _folder(
    folder: Path, patterns: Sequence[str], output_stem: Path | None, ignored: Counter[str]
) -> list[InputFile]:
    found: list[InputFile] = []
    passed: Counter[str] = Counter()
    for path in sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts):
        if output_stem and _is_output(path, output_stem):
            continue
        wanted = _matches(path.name, path.relative_to(folder).as_posix(), patterns)
        kind = kind_of(path) or (Kind.TEXT if wanted else None)
        if kind is None or (patterns and not wanted):
            passed[_bare_suffix(path) or path.name] += 1
        else:
            found.append(InputFile(path=path, kind=kind, bytes=path.stat().st_size))
    if not found:
        others = listed(f"{count} {suffix}" for suffix, count in passed.items())
        raise DataError(
            f"{folder}: no file to read; found {others}, want {listed(patterns or KINDS, most=20)}"
        )
    ignored.update(passed)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield Path(where, name)


def _is_output(path: Path, stem: Path) -> bool:
    own = f"{stem.name}."
    return any(
        part.name.startswith(own) and part.parent.absolute() == stem.parent.absolute()
        for part in (path, *path.parents)
    )


def _matches(name: str, relative: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(relative if "/" in text else name, text) for text in patterns)


def _bare_suffix(path: Path) -> str:
    bare = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return bare.suffix.lower()


def _source(argument: Path, files: Sequence[InputFile]) -> Source:
    """Digest of names, sizes and modification times: quick, and it moves when a file does."""
    digest = hashlib.sha256()
    for file in files:
        name = (
            file.path.relative_to(argument).as_posix() if file.path != argument else file.path.name
        )
        digest.update(f"{name}\t{file.bytes}\t{file.path.stat().st_mtime_ns}\n".encode())
    return Source(
        path=str(argument),
        files=len(files),
        bytes=sum(file.bytes for file in files),
        digest=digest.hexdigest(),
    )
