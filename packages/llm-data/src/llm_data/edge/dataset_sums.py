"""The manifest of a dataset made of others: what is counted while it is written."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from llm_data.edge.dataset_files import DatasetManifest
from llm_data.formats.manifest import pack_manifest, unpack_manifest
from llm_data.formats.manifest_parts import FileEntry


class ColumnSum:
    """What one column amounts to so far."""

    def __init__(self, name: str, dtype: np.dtype[np.generic]) -> None:
        self.name = name
        self.rows = 0
        self.sequences = 0
        self.tokens = 0
        self._dtype = dtype

    def add(self, block: bytes | memoryview) -> None:
        """Count whole tokens."""
        self.tokens += len(block) // self._dtype.itemsize


def outline(manifest: DatasetManifest) -> DatasetManifest:
    """The manifest without what is only known once the files are written."""
    return replace(manifest, num_documents=0, num_sequences=0, num_tokens=0, files={})


def is_of(manifest: DatasetManifest, draft: DatasetManifest) -> bool:
    """The manifest is what comes of the draft, whichever version wrote it."""
    return replace(outline(manifest), created_by=draft.created_by) == draft


def completed(
    draft: DatasetManifest, sums: Mapping[str, ColumnSum], files: Mapping[str, FileEntry]
) -> DatasetManifest:
    """The draft with what was counted."""
    (only,) = sums.values()
    return replace(
        draft,
        num_documents=only.rows,
        num_sequences=only.sequences,
        num_tokens=only.tokens,
        files=files,
    )


def packed(manifest: DatasetManifest) -> bytes:
    """The manifest's bytes."""
    return pack_manifest(manifest)


def read_again(path: Path) -> DatasetManifest:
    """The manifest at `path`."""
    return unpack_manifest(path.read_bytes(), where=str(path))
