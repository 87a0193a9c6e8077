"""The JSON manifest beside a token dataset, version 1."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypeVar, cast

from llm_data.errors import FormatError, did_you_mean, listed

FORMAT = "token-dataset"
VERSION = 1

_T = TypeVar("_T", bound="Tokenizer | Source | FileEntry | Manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """What must agree between the data and whoever decodes or trains on it."""

    digest: str
    vocab_size: int
    eos_token: str | None
    eos_id: int | None
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One INPUT of the command line: `digest` covers names, sizes and modification times."""

    path: str
    files: int
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size and lower-case SHA-256 of one file of the dataset."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole manifest; `eod_id` is the id appended to each document, or None."""

    dtype: str
    num_documents: int
    num_sequences: int
    num_tokens: int
    key: str
    level: str
    append_eod: bool
    eod_id: int | None
    tokenizer: Tokenizer
    sources: tuple[Source, ...]
    drops: Mapping[str, int]
    on_error: str
    files: Mapping[str, FileEntry]
    created_by: str


def pack_manifest(manifest: Manifest) -> bytes:
    """UTF-8 JSON, two-space indent, keys in the order of the fields."""
    body = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    return (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()


def unpack_manifest(data: bytes, *, where: str) -> Manifest:
    """The manifest in `data`; an unknown, missing or mistyped key is a FormatError."""
    body = _parse(data, where=where)
    for key, wanted in (("format", FORMAT), ("version", VERSION)):
        if body.get(key) != wanted:
            raise FormatError(f"{where}: {key} {body.get(key)!r}, want {wanted!r}")
    rest = {key: value for key, value in body.items() if key not in ("format", "version")}
    _check_keys(rest, Manifest, where=where)
    sources = _list(rest["sources"], where=f"{where}: sources")
    drops = _object(rest["drops"], where=f"{where}: drops")
    files = _object(rest["files"], where=f"{where}: files")
    if sorted(files) != ["bin", "idx"]:
        raise FormatError(f"{where}: files has {listed(sorted(files))}, want bin, idx")
    return Manifest(
        dtype=_choice(rest["dtype"], ("uint16", "int32"), where=f"{where}: dtype"),
        num_documents=_count(rest["num_documents"], where=f"{where}: num_documents"),
        num_sequences=_count(rest["num_sequences"], where=f"{where}: num_sequences"),
        num_tokens=_count(rest["num_tokens"], where=f"{where}: num_tokens"),
        key=_text(rest["key"], where=f"{where}: key"),
        level=_choice(rest["level"], ("document",), where=f"{where}: level"),
        append_eod=_flag(rest["append_eod"], where=f"{where}: append_eod"),
        eod_id=_optional_count(rest["eod_id"], where=f"{where}: eod_id"),
        tokenizer=_tokenizer(rest["tokenizer"], where=f"{where}: tokenizer"),
        sources=tuple(
            _source(item, where=f"{where}: sources[{i}]") for i, item in enumerate(sources)
        ),
        drops={reason: _count(n, where=f"{where}: drops.{reason}") for reason, n in drops.items()},
        files={
            name: _file_entry(item, where=f"{where}: files.{name}") for name, item in files.items()
        },
        on_error=_choice(rest["on_error"], ("stop", "skip"), where=f"{where}: on_error"),
        created_by=_text(rest["created_by"], where=f"{where}: created_by"),
    )


def _parse(data: bytes, *, where: str) -> dict[str, object]:
    try:
        body: object = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {error}") from None
    return _object(body, where=where)


def _tokenizer(value: object, *, where: str) -> Tokenizer:
    body = _object(value, where=where)
    _check_keys(body, Tokenizer, where=where)
    eos_token = body["eos_token"]
    return Tokenizer(
        digest=_text(body["digest"], where=f"{where}.digest"),
        vocab_size=_count(body["vocab_size"], where=f"{where}.vocab_size"),
        eos_token=None if eos_token is None else _text(eos_token, where=f"{where}.eos_token"),
        eos_id=_optional_count(body["eos_id"], where=f"{where}.eos_id"),
        file=_text(body["file"], where=f"{where}.file"),
    )


def _source(value: object, *, where: str) -> Source:
    body = _object(value, where=where)
    _check_keys(body, Source, where=where)
    return Source(
        path=_text(body["path"], where=f"{where}.path"),
        files=_count(body["files"], where=f"{where}.files"),
        bytes=_count(body["bytes"], where=f"{where}.bytes"),
        digest=_text(body["digest"], where=f"{where}.digest"),
    )


def _file_entry(value: object, *, where: str) -> FileEntry:
    body = _object(value, where=where)
    _check_keys(body, FileEntry, where=where)
    return FileEntry(
        bytes=_count(body["bytes"], where=f"{where}.bytes"),
        sha256=_text(body["sha256"], where=f"{where}.sha256"),
    )


def _check_keys(body: Mapping[str, object], kind: type[_T], *, where: str) -> None:
    wanted = [field.name for field in fields(kind)]
    for key in body:
        if key not in wanted:
            raise FormatError(f"{where}: unknown key {key!r}{did_you_mean(key, wanted)}")
    if missing := [key for key in wanted if key not in body]:
        raise FormatError(f"{where}: no key {missing[0]!r}; found {listed(sorted(body))}")


def _object(value: object, *, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(value, "an object", where=where)
    return cast("dict[str, object]", value)


def _list(value: object, *, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _wrong(value, "a list", where=where)
    return cast("list[object]", value)


def _text(value: object, *, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, "a string", where=where)
    return value


def _count(value: object, *, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(value, "an integer ≥ 0", where=where)
    return value


def _optional_count(value: object, *, where: str) -> int | None:
    return None if value is None else _count(value, where=where)


def _flag(value: object, *, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, "true or false", where=where)
    return value


def _choice(value: object, choices: tuple[str, ...], *, where: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise _wrong(value, f"one of {listed(choices)}", where=where)
    return value


def _wrong(value: object, wanted: str, *, where: str) -> FormatError:
    found = repr(value)
    return FormatError(f"{where}: {found[:60]}, want {wanted}")
