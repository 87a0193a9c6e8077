"""The JSON manifest of a sample dataset, version 1, and the columns each task has."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType

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
    wrong_value,
)
from llm_data.formats.manifest_parts import (
    FileEntry,
    Source,
    Tokenizer,
    file_entry_of,
    source_of,
    tokenizer_of,
)

FORMAT = "sample-dataset"
VERSION = 1

# Of packed rows: where samples end. Not a column: it has lengths of its own.
BOUNDARIES = "cu_seqlens"
IGNORED_LABEL = -100
DTYPES = ("uint16", "int32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Columns of equal lengths: of one sequence of ids, its labels and its mask."""

    input_ids: str
    labels: str | None = None
    attention_mask: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of those there are."""
        names = (self.input_ids, self.labels, self.attention_mask)
        return tuple(name for name in names if name is not None)


SIDES: Mapping[str, tuple[Side, ...]] = MappingProxyType(
    {
        "sft": (Side(input_ids="input_ids", labels="labels", attention_mask="attention_mask"),),
        "pairwise": (
            Side(input_ids="chosen_input_ids", labels="chosen_labels"),
            Side(input_ids="rejected_input_ids", labels="rejected_labels"),
        ),
        "prompt": (Side(input_ids="input_ids", attention_mask="attention_mask"),),
        "prm": (Side(input_ids="input_ids", labels="labels", attention_mask="attention_mask"),),
    }
)

# In the order of the manifest.
COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sft": ("input_ids", "attention_mask", "labels"),
        "pairwise": (
            "chosen_input_ids",
            "chosen_labels",
            "rejected_input_ids",
            "rejected_labels",
        ),
        "prompt": ("input_ids", "attention_mask"),
        "prm": ("input_ids", "labels", "attention_mask"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleColumn:
    """A column and its element type."""

    name: str
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateEntry:
    """The chat template that made the text: its name and the SHA-256 of its text."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleManifest:
    """The whole manifest.

    A packed dataset has `seq_length` entries a row, the unused ones filled with `pad_id`;
    otherwise `seq_length` is the longest row allowed, or None. `num_tokens` counts the tokens of
    all sides without filling, `num_loss_tokens` the labels that are learned.
    """

    task: str
    columns: tuple[SampleColumn, ...]
    num_rows: int
    num_samples: int
    num_tokens: int
    num_loss_tokens: int
    packed: bool
    seq_length: int | None
    pad_id: int | None
    template: TemplateEntry | None
    options: Mapping[str, str | int | bool | None]
    tokenizer: Tokenizer
    sources: tuple[Source, ...]
    drops: Mapping[str, int]
    notes: Mapping[str, int]
    on_error: str
    files: Mapping[str, FileEntry]
    created_by: str

    @property
    def sides(self) -> tuple[Side, ...]:
        """Which columns belong together."""
        return SIDES[self.task]

    @property
    def pairs(self) -> dict[str, str]:
        """Each pair of files: what the manifest calls it, and what its name ends with."""
        return pair_endings([column.name for column in self.columns], packed=self.packed)


def pair_endings(columns: Iterable[str], *, packed: bool) -> dict[str, str]:
    """Name of each pair to what follows the prefix in its file names, without `.bin`, `.idx`."""
    endings = {name: f"_packed_{name}_document" for name in columns}
    # Without `_document`, by which MindSpeed-LLM tells columns.
    return {**endings, BOUNDARIES: f"_packed_{BOUNDARIES}"} if packed else endings


def pack_sample_manifest(manifest: SampleManifest) -> bytes:
    """UTF-8 JSON, two-space indent, keys in the order of the fields."""
    body = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    return (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()


def unpack_sample_manifest(data: bytes, *, where: str) -> SampleManifest:
    """The manifest in `data`; an unknown, missing, mistyped or contradicting key is refused."""
    body = parse_manifest(data, format_name=FORMAT, version=VERSION, where=where)
    check_keys(body, [field.name for field in fields(SampleManifest)], where=where)
    columns = as_list(body["columns"], where=f"{where}: columns")
    sources = as_list(body["sources"], where=f"{where}: sources")
    files = as_object(body["files"], where=f"{where}: files")
    manifest = SampleManifest(
        task=as_choice(body["task"], COLUMNS, where=f"{where}: task"),
        columns=tuple(
            _column(item, where=f"{where}: columns[{i}]") for i, item in enumerate(columns)
        ),
        num_rows=as_count(body["num_rows"], where=f"{where}: num_rows"),
        num_samples=as_count(body["num_samples"], where=f"{where}: num_samples"),
        num_tokens=as_count(body["num_tokens"], where=f"{where}: num_tokens"),
        num_loss_tokens=as_count(body["num_loss_tokens"], where=f"{where}: num_loss_tokens"),
        packed=as_flag(body["packed"], where=f"{where}: packed"),
        seq_length=as_optional_count(body["seq_length"], where=f"{where}: seq_length"),
        pad_id=as_optional_count(body["pad_id"], where=f"{where}: pad_id"),
        template=_template(body["template"], where=f"{where}: template"),
        options=as_options(body["options"], where=f"{where}: options"),
        tokenizer=tokenizer_of(body["tokenizer"], where=f"{where}: tokenizer"),
        sources=tuple(
            source_of(item, where=f"{where}: sources[{i}]") for i, item in enumerate(sources)
        ),
        drops=as_counts(body["drops"], where=f"{where}: drops"),
        notes=as_counts(body["notes"], where=f"{where}: notes"),
        on_error=as_choice(body["on_error"], ("stop", "skip"), where=f"{where}: on_error"),
        files={
            name: file_entry_of(item, where=f"{where}: files.{name}")
            for name, item in files.items()
        },
        created_by=as_text(body["created_by"], where=f"{where}: created_by"),
    )
    _check_columns(manifest, where=where)
    _check_packing(manifest, where=where)
    return manifest


def _column(value: object, *, where: str) -> SampleColumn:
    body = as_object(value, where=where)
    check_keys(body, [field.name for field in fields(SampleColumn)], where=where)
    name = as_text(body["name"], where=f"{where}.name")
    # It becomes part of a file's name.
    if not name or "/" in name or "\0" in name:
        raise wrong_value(name, "a name without '/'", where=f"{where}.name")
    return SampleColumn(name=name, dtype=as_choice(body["dtype"], DTYPES, where=f"{where}.dtype"))


def _template(value: object, *, where: str) -> TemplateEntry | None:
    if value is None:
        return None
    body = as_object(value, where=where)
    check_keys(body, [field.name for field in fields(TemplateEntry)], where=where)
    return TemplateEntry(
        name=as_text(body["name"], where=f"{where}.name"),
        digest=as_text(body["digest"], where=f"{where}.digest"),
    )


def _check_columns(manifest: SampleManifest, *, where: str) -> None:
    found = [column.name for column in manifest.columns]
    wanted = list(COLUMNS[manifest.task])
    further = found[len(wanted) :]
    if found[: len(wanted)] != wanted or (further and manifest.task != "prompt"):
        raise FormatError(
            f"{where}: columns are {listed(found)}, want {listed(wanted)} for {manifest.task}"
        )
    if further != sorted(set(further) - set(wanted)):
        raise FormatError(
            f"{where}: further columns are {listed(further)}, want distinct names, sorted"
        )
    labels = {side.labels for side in manifest.sides}
    for column in manifest.columns:
        if column.name in labels and column.dtype != "int32":
            raise FormatError(f"{where}: {column.name} is {column.dtype}, want int32")
    _check_names(
        manifest.files,
        [f"{name}.{end}" for name in manifest.pairs for end in ("bin", "idx")],
        where=f"{where}: files",
    )


def _check_packing(manifest: SampleManifest, *, where: str) -> None:
    if manifest.packed:
        if manifest.task != "sft":
            raise FormatError(f"{where}: packed is true, but the task is {manifest.task}, want sft")
        for key in ("seq_length", "pad_id"):
            if getattr(manifest, key) is None:
                raise FormatError(f"{where}: {key} is null, but packed is true")
    elif manifest.pad_id is not None:
        raise FormatError(f"{where}: pad_id is {manifest.pad_id}, want null: packed is false")
    elif manifest.num_samples != manifest.num_rows:
        raise FormatError(
            f"{where}: {manifest.num_samples} samples in {manifest.num_rows} rows, want as many: "
            "packed is false"
        )


def _check_names(found: Iterable[str], wanted: Sequence[str], *, where: str) -> None:
    surplus, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if surplus or missing:
        raise FormatError(f"{where}: missing {listed(missing)}; unknown {listed(surplus)}")
