"""What datasets must agree on before their documents stand in one."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from llm_data.edge.datasets.dataset_files import DatasetFiles
from llm_data.edge.datasets.dataset_manifests import DatasetManifest
from llm_data.errors import DataError
from llm_data.formats.manifest import Manifest

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


def check_agreement(datasets: Sequence[DatasetFiles]) -> None:
    """Raise DataError naming the first two datasets that differ, in what, and both values."""
    first = datasets[0]
    for other in datasets[1:]:
        for name, one, two in _differences(first, other):
            raise DataError(
                f"{other.name}: {name} {two}, but {first.name} has {one}; want datasets that agree"
            )


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
        if field.name in _FREE or field.name == "tokenizer":
            continue
        here, there = getattr(one, field.name), getattr(two, field.name)
        if here != there:
            yield field.name, here, there


def _kind(files: DatasetFiles) -> str:
    if files.manifest is None:
        return "no manifest (--without-manifest merges bare pairs)"
    return "token dataset" if isinstance(files.manifest, Manifest) else "sample dataset"
