"""What the manifests of token and sample datasets have in common."""

from dataclasses import dataclass, fields

from llm_data.formats.manifest_checks import (
    as_count,
    as_object,
    as_optional_count,
    as_optional_text,
    as_text,
    check_keys,
)


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


def tokenizer_of(value: object, *, where: str) -> Tokenizer:
    """The `tokenizer` of a manifest."""
    body = _body(value, Tokenizer, where=where)
    return Tokenizer(
        digest=as_text(body["digest"], where=f"{where}.digest"),
        vocab_size=as_count(body["vocab_size"], where=f"{where}.vocab_size"),
        eos_token=as_optional_text(body["eos_token"], where=f"{where}.eos_token"),
        eos_id=as_optional_count(body["eos_id"], where=f"{where}.eos_id"),
        file=as_text(body["file"], where=f"{where}.file"),
    )


def source_of(value: object, *, where: str) -> Source:
    """One of the `sources` of a manifest."""
    body = _body(value, Source, where=where)
    return Source(
        path=as_text(body["path"], where=f"{where}.path"),
        files=as_count(body["files"], where=f"{where}.files"),
        bytes=as_count(body["bytes"], where=f"{where}.bytes"),
        digest=as_text(body["digest"], where=f"{where}.digest"),
    )


def file_entry_of(value: object, *, where: str) -> FileEntry:
    """One of the `files` of a manifest."""
    body = _body(value, FileEntry, where=where)
    return FileEntry(
        bytes=as_count(body["bytes"], where=f"{where}.bytes"),
        sha256=as_text(body["sha256"], where=f"{where}.sha256"),
    )


def _body(
    value: object, kind: type[Tokenizer | Source | FileEntry], *, where: str
) -> dict[str, object]:
    body = as_object(value, where=where)
    check_keys(body, [field.name for field in fields(kind)], where=where)
    return body
