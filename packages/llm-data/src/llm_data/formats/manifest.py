"""The JSON manifest beside a token dataset, version 1."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from llm_data.errors import FormatError, listed
from llm_data.formats.manifest_checks import (
    as_choice,
    as_count,
    as_counts,
    as_flag,
    as_list,
    as_object,
    as_optional_count,
    as_options,
    as_text,
    check_keys,
    parse_manifest,
)
from llm_data.formats.manifest_parts import (
    FileEntry,
    Source,
    Tokenizer,
    file_entry_of,
    source_of,
    tokenizer_of,
)

__all__ = ["FileEntry", "Manifest", "Source", "Tokenizer", "pack_manifest", "unpack_manifest"]

FORMAT = "token-dataset"
VERSION = 1
LEVELS = ("document", "sentence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole manifest; `eod_id` is the id appended to each document, or None.

    `options` are what else decided the tokens, empty for plain text.
    """

    dtype: str
    num_documents: int
    num_sequences: int
    num_tokens: int
    key: str
    level: str
    append_eod: bool
    eod_id: int | None
    options: Mapping[str, str | int | bool | None]
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
    body = parse_manifest(data, format_name=FORMAT, version=VERSION, where=where)
    check_keys(body, [field.name for field in fields(Manifest)], where=where)
    sources = as_list(body["sources"], where=f"{where}: sources")
    files = as_object(body["files"], where=f"{where}: files")
    if sorted(files) != ["bin", "idx"]:
        raise FormatError(f"{where}: files has {listed(sorted(files))}, want bin, idx")
    return Manifest(
        dtype=as_choice(body["dtype"], ("uint16", "int32"), where=f"{where}: dtype"),
        num_documents=as_count(body["num_documents"], where=f"{where}: num_documents"),
        num_sequences=as_count(body["num_sequences"], where=f"{where}: num_sequences"),
        num_tokens=as_count(body["num_tokens"], where=f"{where}: num_tokens"),
        key=as_text(body["key"], where=f"{where}: key"),
        level=as_choice(body["level"], LEVELS, where=f"{where}: level"),
        append_eod=as_flag(body["append_eod"], where=f"{where}: append_eod"),
        eod_id=as_optional_count(body["eod_id"], where=f"{where}: eod_id"),
        options=as_options(body["options"], where=f"{where}: options"),
        tokenizer=tokenizer_of(body["tokenizer"], where=f"{where}: tokenizer"),
        sources=tuple(
            source_of(item, where=f"{where}: sources[{i}]") for i, item in enumerate(sources)
        ),
        drops=as_counts(body["drops"], where=f"{where}: drops"),
        files={
            name: file_entry_of(item, where=f"{where}: files.{name}")
            for name, item in files.items()
        },
        on_error=as_choice(body["on_error"], ("stop", "skip"), where=f"{where}: on_error"),
        created_by=as_text(body["created_by"], where=f"{where}: created_by"),
    )
