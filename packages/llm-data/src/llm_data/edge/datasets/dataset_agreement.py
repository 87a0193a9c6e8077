"""What datasets must agree on before their documents stand in one."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from llm_data.edge.datasets.dataset_files import DatasetFiles
from llm_data.edge.datasets.dataset_manifests import DatasetManifest, OptionValue
from llm_data.errors import DataError
from llm_data.formats.manifest import Manifest
from llm_data.formats.sample_manifest import SampleManifest, TemplateEntry

# What they may differ in: it is summed, joined, or says nothing of the tokens.
_FREE = frozenset(
    {
        "num_documents",
        "num_sequences",
        "num_tokens",
        "num_rows",
        "num_samples",
        "num_loss_tokens",
        "sources",
        "drops",
        "notes",
        "on_error",
        "files",
        "created_by",
    }
)
# Options of how records were read and which were left out: a sample is learned the same way.
_FREE_OPTIONS = frozenset({"format", "map_keys", "handler", "template_date", "too_long"})
_BETWEEN = " | "


def check_agreement(datasets: Sequence[DatasetFiles]) -> None:
    """Raise DataError naming the first two datasets that differ, in what, and both values."""
    first = datasets[0]
    for other in datasets[1:]:
        for name, one, two in _differences(first, other):
            raise DataError(
                f"{other.name}: {name} {two}, but {first.name} has {one}; want datasets that agree"
            )


def joined(manifests: Sequence[DatasetManifest]) -> DatasetManifest:
    """The first manifest, with what all of them have where datasets that agree may differ."""
    first = manifests[0]
    names = dict.fromkeys(name for manifest in manifests for name in manifest.options)
    options = {
        name: _joined([manifest.options.get(name) for manifest in manifests]) for name in names
    }
    if not isinstance(first, SampleManifest):
        return replace(first, options=options)
    limits = [each.seq_length for each in manifests if isinstance(each, SampleManifest)]
    known = [limit for limit in limits if limit is not None]
    longest = max(known) if len(known) == len(limits) else None
    return replace(first, options=options, seq_length=longest)


def _joined(values: Sequence[OptionValue]) -> OptionValue:
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    if len(distinct) <= 1:
        return distinct[0] if distinct else None
    return _BETWEEN.join(str(value) for value in distinct)


def _differences(one: DatasetFiles, two: DatasetFiles) -> Iterator[tuple[str, object, object]]:
    if type(one.manifest) is not type(two.manifest):
        yield "kind", _kind(one), _kind(two)
        return
    if one.manifest is not None and two.manifest is not None:
        yield from _manifest_differences(one.manifest, two.manifest)
    if one.columns != two.columns:
        yield "columns", ", ".join(one.columns), ", ".join(two.columns)
        return
    for column, here, there in zip(one.columns, one.headers, two.headers, strict=True):
        if here.dtype != there.dtype:
            yield f"{column} dtype".strip(), here.dtype.name, there.dtype.name


def _manifest_differences(
    one: DatasetManifest, two: DatasetManifest
) -> Iterator[tuple[str, object, object]]:
    if one.tokenizer.digest != two.tokenizer.digest:
        yield "tokenizer digest", one.tokenizer.digest[:16], two.tokenizer.digest[:16]
    # What the file was called says nothing of the tokens.
    here, there = (replace(manifest.tokenizer, file="") for manifest in (one, two))
    if here != there:
        yield "tokenizer", here, there
    for field in fields(one):
        if field.name in _FREE or field.name in ("tokenizer", "options"):
            continue
        if field.name == "seq_length" and not _is_packed(one):
            continue
        here, there = getattr(one, field.name), getattr(two, field.name)
        if here != there:
            yield field.name, _shown(here), _shown(there)
    for name in dict.fromkeys((*one.options, *two.options)):
        here, there = one.options.get(name), two.options.get(name)
        if here != there and name not in _FREE_OPTIONS:
            yield f"option {name}", here, there


def _is_packed(manifest: DatasetManifest) -> bool:
    return isinstance(manifest, SampleManifest) and manifest.packed


def _shown(value: object) -> object:
    return f"{value.name} {value.digest[:12]}" if isinstance(value, TemplateEntry) else value


def _kind(files: DatasetFiles) -> str:
    if files.manifest is None:
        return "no manifest (--without-manifest merges bare pairs)"
    return "token dataset" if isinstance(files.manifest, Manifest) else "sample dataset"
