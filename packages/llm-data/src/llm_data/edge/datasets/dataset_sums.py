"""The manifest of a dataset made of others: what is counted while it is written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from llm_data.edge.datasets.dataset_files import DatasetFiles
from llm_data.edge.datasets.dataset_manifests import DatasetManifest
from llm_data.errors import FormatError
from llm_data.formats.manifest import FORMAT, Manifest, unpack_manifest
from llm_data.formats.manifest_parts import FileEntry, Source
from llm_data.formats.sample_manifest import (
    BOUNDARIES,
    IGNORED_LABEL,
    SampleManifest,
    unpack_sample_manifest,
)


class ColumnSum:
    """What one column amounts to so far; with `apart_from`, how many entries are not that."""

    def __init__(self, dtype: np.dtype[np.generic], *, apart_from: int | None = None) -> None:
        self.rows = 0
        self.sequences = 0
        self.tokens = 0
        self.others = 0
        self._dtype = dtype
        self._apart_from = apart_from

    def add(self, block: bytes | memoryview) -> None:
        """Count whole entries."""
        self.tokens += len(block) // self._dtype.itemsize
        if self._apart_from is not None:
            entries = np.frombuffer(block, dtype=self._dtype)
            self.others += int(np.count_nonzero(entries != self._apart_from))


def sum_of(column: str, dtype: np.dtype[np.generic]) -> ColumnSum:
    """An empty sum for a column: of labels those learned count, of masks what is no padding."""
    if column.endswith("labels"):
        return ColumnSum(dtype, apart_from=IGNORED_LABEL)
    if column == "attention_mask":
        return ColumnSum(dtype, apart_from=0)
    return ColumnSum(dtype)


def outline(manifest: DatasetManifest) -> DatasetManifest:
    """The manifest without what is only known once the files are written."""
    if isinstance(manifest, Manifest):
        return replace(manifest, num_documents=0, num_sequences=0, num_tokens=0, files={})
    return replace(manifest, num_rows=0, num_samples=0, num_tokens=0, num_loss_tokens=0, files={})


def completed(
    draft: DatasetManifest, sums: Mapping[str, ColumnSum], files: Mapping[str, FileEntry]
) -> DatasetManifest:
    """The draft with what was counted, by column."""
    if isinstance(draft, SampleManifest):
        return _completed_samples(draft, sums, files)
    (only,) = sums.values()
    return replace(
        draft,
        num_documents=only.rows,
        num_sequences=only.sequences,
        num_tokens=only.tokens,
        files=files,
    )


def is_of(manifest: DatasetManifest, draft: DatasetManifest) -> bool:
    """The manifest is what comes of the draft, whichever version wrote it."""
    return replace(outline(manifest), created_by=draft.created_by) == draft


def derived_source(files: DatasetFiles, *, how: str) -> Source:
    """The dataset as a source of another; the digest covers its checksums and what was done."""
    assert files.manifest is not None
    entries = files.manifest.files
    body = {"how": how, "files": {name: asdict(entry) for name, entry in entries.items()}}
    return Source(
        path=files.name,
        files=len(entries),
        bytes=sum(entry.bytes for entry in entries.values()),
        digest=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(),
    )


def derived_draft(like: DatasetManifest, *, sources: Sequence[Source]) -> DatasetManifest:
    """The outline of a dataset made of such ones: it dropped nothing, and no input was bad."""
    draft = replace(
        outline(like), sources=tuple(sources), drops={}, on_error="stop", created_by=created_by()
    )
    return draft if isinstance(draft, Manifest) else replace(draft, notes={})


def created_by() -> str:
    """What manifests say of their writer."""
    return f"llm-data {version('llm-data')}"


def read_again(path: Path) -> DatasetManifest:
    """The manifest at `path`, of either kind."""
    data = path.read_bytes()
    try:
        body: object = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{path}: not JSON: {error}") from None
    if isinstance(body, dict) and body.get("format") == FORMAT:
        return unpack_manifest(data, where=str(path))
    return unpack_sample_manifest(data, where=str(path))


def _completed_samples(
    draft: SampleManifest, sums: Mapping[str, ColumnSum], files: Mapping[str, FileEntry]
) -> SampleManifest:
    rows = next(iter(sums.values())).rows
    sides = draft.sides
    if draft.packed:
        # A row of boundaries is 0 and an end for each sample; a mask is 0 where nothing is.
        num_samples = sums[BOUNDARIES].tokens - sums[BOUNDARIES].sequences
        num_tokens = sum(sums[side.attention_mask].others for side in sides if side.attention_mask)
    else:
        num_samples = rows
        num_tokens = sum(sums[side.input_ids].tokens for side in sides)
    return replace(
        draft,
        num_rows=rows,
        num_samples=num_samples,
        num_tokens=num_tokens,
        num_loss_tokens=sum(sums[side.labels].others for side in sides if side.labels),
        files=files,
    )
