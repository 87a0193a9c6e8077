"""The files named by INPUT arguments, in order."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from llm_data.edge.sources.saved_datasets import METADATA_NAMES, is_saved_dataset, saved_files
from llm_data.edge.sources.streams import COMPRESSIONS
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
    modified_ns: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    patterns: Sequence[str]
    output_stem: Path | None
    split: str | None
    datasets_params: Mapping[str, object]


class _Origin(Enum):
    """Where an argument's files come from: decides which options have a meaning."""

    PATH = "files"
    SAVED = "a saved dataset"
    HUB = "a dataset's name"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The files of one argument; `names` are what its digest calls them."""

    argument: str
    origin: _Origin
    files: Sequence[InputFile]
    names: Sequence[str]
    fingerprint: str = ""
    passed: Mapping[str, int] = field(default_factory=dict[str, int])


def find_inputs(
    arguments: Sequence[str | Path],
    *,
    patterns: Sequence[str] = (),
    output_stem: Path | None = None,
    split: str | None = None,
    datasets_params: Mapping[str, object] = MappingProxyType({}),
) -> Inputs:
    """Files as given, folders in sorted order, datasets in the order of their rows.

    An argument is a path, or if there is none the name of a Hugging Face dataset, to which
    `split` and `datasets_params`, arguments of `load_dataset`, apply. What a run writes at
    `output_stem` is left out.
    """
    choice = _Choice(
        patterns=patterns, output_stem=output_stem, split=split, datasets_params=datasets_params
    )
    every = [_find(str(argument), choice) for argument in arguments]
    origins = {found.origin for found in every}
    if split is not None and origins <= {_Origin.PATH}:
        raise UsageError(f"--split {split}: no INPUT is a Hugging Face dataset")
    if datasets_params and _Origin.HUB not in origins:
        raise UsageError("--datasets-params: no INPUT is the name of a Hugging Face dataset")
    ignored: Counter[str] = Counter()
    for found in every:
        ignored.update(found.passed)
    return Inputs(
        files=tuple(file for found in every for file in found.files),
        sources=tuple(_source(found) for found in every),
        ignored=dict(ignored),
    )


def kind_of(path: Path) -> Kind | None:
    """The format a file's suffix names, whether compressed or not."""
    return KINDS.get(_bare_suffix(path))


def _find(argument: str, choice: _Choice) -> _Found:
    path = Path(argument)
    if path.is_dir():
        return _saved(path, choice) if is_saved_dataset(path) else _folder(path, choice)
    if path.exists():
        file = _named_file(path, choice.patterns)
        return _Found(argument=argument, origin=_Origin.PATH, files=[file], names=[path.name])
    return _hub(argument, choice)


def _hub(argument: str, choice: _Choice) -> _Found:
    from llm_data.edge.sources.hf_datasets import is_dataset_name, load_hub_dataset

    params = choice.datasets_params
    if not is_dataset_name(argument, params=params) or kind_of(Path(argument)):
        raise UsageError(f"{argument}: no such file or folder, nor a dataset's name (org/name)")
    dataset = load_hub_dataset(argument, split=choice.split, params=params)
    return _Found(
        argument=argument,
        origin=_Origin.HUB,
        files=[_input(path, Kind.ARROW) for path in dataset.files],
        names=[path.name for path in dataset.files],
        fingerprint=dataset.fingerprint,
    )


def _saved(folder: Path, choice: _Choice) -> _Found:
    paths = saved_files(folder, split=choice.split)
    return _Found(
        argument=str(folder),
        origin=_Origin.SAVED,
        files=[_input(path, Kind.ARROW) for path in paths],
        names=[path.relative_to(folder).as_posix() for path in paths],
    )


def _named_file(path: Path, patterns: Sequence[str]) -> InputFile:
    kind = kind_of(path) or (Kind.TEXT if _matches(path.name, path.name, patterns) else None)
    if kind is None:
        raise UsageError(
            f"{path}: unknown suffix {_bare_suffix(path)!r}, want {listed(KINDS, most=20)}; "
            f"--pattern '*{_bare_suffix(path)}' reads it as plain text"
        )
    return _input(path, kind)


def _folder(folder: Path, choice: _Choice) -> _Found:
    files: list[InputFile] = []
    passed: Counter[str] = Counter()
    origin = _Origin.PATH
    for relative in sorted(_walk(folder), key=lambda relative: relative.split("/")):
        path = folder / relative.removesuffix("/")
        if choice.output_stem and _is_output(path, choice.output_stem):
            continue
        if relative.endswith("/"):
            origin = _Origin.SAVED
            files += _saved(path, choice).files
        elif kind := _kind_wanted(path, relative, choice.patterns):
            files.append(_input(path, kind))
        else:
            passed[_bare_suffix(path) or path.name] += 1
    if not files:
        others = listed(f"{count} {suffix}" for suffix, count in passed.items())
        wanted = listed(choice.patterns or KINDS, most=20)
        raise DataError(f"{folder}: no file to read; found {others}, want {wanted}")
    return _Found(
        argument=str(folder),
        origin=origin,
        files=files,
        names=[file.path.relative_to(folder).as_posix() for file in files],
        passed=passed,
    )


def _walk(folder: Path) -> Iterator[str]:
    """Every file below, and in their stead, ending in `/`, the folders that are saved datasets."""
    for where, folders, names in os.walk(folder):
        inner = [name for name in folders if not name.startswith(".")]
        datasets = [name for name in inner if is_saved_dataset(Path(where, name))]
        folders[:] = [name for name in inner if name not in datasets]
        beside = Path(where).relative_to(folder).as_posix()
        prefix = "" if beside == "." else f"{beside}/"
        for name in (*names, *(f"{name}/" for name in datasets)):
            if not name.startswith("."):
                yield prefix + name


def _kind_wanted(path: Path, relative: str, patterns: Sequence[str]) -> Kind | None:
    is_matched = bool(patterns) and _matches(path.name, relative, patterns)
    if not is_matched and (patterns or path.name in METADATA_NAMES):
        return None
    return kind_of(path) or (Kind.TEXT if is_matched else None)


def _input(path: Path, kind: Kind) -> InputFile:
    stat = path.stat()
    return InputFile(path=path, kind=kind, bytes=stat.st_size, modified_ns=stat.st_mtime_ns)


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


def _source(found: _Found) -> Source:
    """Digest of names, sizes and modification times: quick, and it moves when a file does."""
    digest = hashlib.sha256(found.fingerprint.encode())
    for file, name in zip(found.files, found.names, strict=True):
        digest.update(f"{name}\t{file.bytes}\t{file.modified_ns}\n".encode())
    return Source(
        path=found.argument,
        files=len(found.files),
        bytes=sum(file.bytes for file in found.files),
        digest=digest.hexdigest(),
    )
