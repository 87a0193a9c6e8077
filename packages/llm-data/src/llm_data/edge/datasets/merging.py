"""Several datasets of one kind, end to end, as one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llm_data.edge.console.progress import Progress, Silent
from llm_data.edge.datasets.dataset_agreement import check_agreement, joined
from llm_data.edge.datasets.dataset_files import (
    DatasetFiles,
    open_files,
    open_pair,
    output_layout,
    token_layout,
)
from llm_data.edge.datasets.dataset_manifests import DatasetManifest
from llm_data.edge.datasets.dataset_sums import created_by, outline
from llm_data.edge.datasets.derived_dataset import Derivation, Derived, derive, whole
from llm_data.edge.durable import with_suffix
from llm_data.edge.runs.run_folder import Layout
from llm_data.errors import DataError, UsageError, listed
from llm_data.formats.manifest import Manifest
from llm_data.formats.sample_manifest import SampleManifest


def merge(
    inputs: Sequence[Path],
    *,
    output: Path,
    without_manifest: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Derived:
    """Write the datasets end to end, in the order given, as one; checksums are compared on the way.

    With `without_manifest` they are bare pairs, as Megatron writes, and so is the result: nothing
    then says that their tokenizers agree. Raises DataError where they differ in anything that must
    agree.
    """
    if not inputs:
        raise UsageError("no INPUT given: want datasets to merge")
    datasets = [open_files(prefix, bare=without_manifest) for prefix in inputs]
    check_agreement(datasets)
    layout = output_layout(output, datasets[0])
    return _merged(datasets, layout, overwrite=overwrite, progress=progress or Silent())


def merge_groups(
    folder: Path,
    keys: Sequence[str],
    *,
    output: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Derived]:
    """For each key, every pair of `folder` with the key in its name, sorted, as `<output>_<key>`.

    MindSpeed-LLM's way to merge. A result has a manifest if every pair of its group has one.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: want a folder of .bin and .idx files")
    pairs = sorted(path.with_suffix("") for path in folder.glob("*.idx"))
    groups = {key: [stem for stem in pairs if key in stem.name] for key in keys}
    for key, stems in groups.items():
        if not stems:
            raise DataError(
                f"{folder}: no .idx file has {key!r} in its name; found "
                f"{listed(stem.name for stem in pairs)}"
            )
    done: list[Derived] = []
    for key, stems in groups.items():
        bare = not all(with_suffix(stem, ".json").exists() for stem in stems)
        datasets = [open_pair(stem) if bare else open_files(stem) for stem in stems]
        check_agreement(datasets)
        layout = token_layout(output.with_name(f"{output.name}_{key}"))
        done.append(_merged(datasets, layout, overwrite=overwrite, progress=progress or Silent()))
    return done


def _merged(
    datasets: Sequence[DatasetFiles], output: Layout, *, overwrite: bool, progress: Progress
) -> Derived:
    plan = Derivation(
        inputs=datasets,
        order=(
            draws
            for number, files in enumerate(datasets)
            for draws in whole(number, files.num_documents)
        ),
        num_documents=sum(files.num_documents for files in datasets),
        output=output,
        draft=_draft([files.manifest for files in datasets if files.manifest]),
        is_checked=True,
    )
    return derive(plan, overwrite=overwrite, progress=progress)


def _draft(manifests: Sequence[DatasetManifest]) -> DatasetManifest | None:
    """The manifest that one run over all sources would have written; None for bare pairs."""
    if not manifests:
        return None
    skipped = any(manifest.on_error == "skip" for manifest in manifests)
    draft = replace(
        outline(joined(manifests)),
        sources=tuple(source for manifest in manifests for source in manifest.sources),
        drops=_added(manifest.drops for manifest in manifests),
        on_error="skip" if skipped else "stop",
        created_by=created_by(),
    )
    if isinstance(draft, Manifest):
        return draft
    samples = [manifest for manifest in manifests if isinstance(manifest, SampleManifest)]
    return replace(draft, notes=_added(manifest.notes for manifest in samples))


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return {name: total[name] for name in sorted(total) if total[name]}
