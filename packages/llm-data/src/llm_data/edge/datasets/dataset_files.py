"""Datasets as files: which pairs belong together, and what their manifest says of them."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_data.edge.datasets.dataset_manifests import DatasetManifest
from llm_data.edge.datasets.sample_dataset import STEM_ENDING, find_sample_stem
from llm_data.edge.datasets.token_dataset import find_stem, read_manifest
from llm_data.edge.durable import with_suffix
from llm_data.edge.runs.run_folder import Layout, Pair
from llm_data.errors import DataError, FormatError, listed
from llm_data.formats.indexed import DTYPE_CODES, HEADER_BYTES, MAGIC, VERSION
from llm_data.formats.manifest import Manifest
from llm_data.formats.sample_manifest import SampleManifest, unpack_sample_manifest

_HEADER = struct.Struct("<9sQBQQ")


class Header(NamedTuple):
    """What an index says of itself in its first bytes."""

    dtype: np.dtype[np.generic]
    num_sequences: int
    num_documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFiles:
    """A dataset on the disk: a pair a column, and a manifest unless it is a bare pair.

    `headers` are in the order of the layout's pairs and agree on the number of documents.
    """

    name: str
    layout: Layout
    headers: tuple[Header, ...]
    manifest: DatasetManifest | None

    @property
    def num_documents(self) -> int:
        """Documents, or rows of a sample dataset."""
        return self.headers[0].num_documents

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; a token dataset's one column has none."""
        return tuple(pair.entry.removesuffix(".") for pair in self.layout.pairs)


def open_files(prefix: Path, *, bare: bool = False) -> DatasetFiles:
    """The dataset that `prefix` means, with headers and sizes checked; `bare` takes no manifest."""
    if not bare and (samples := find_sample_stem(prefix)) is not None:
        path = with_suffix(samples, ".json")
        manifest = unpack_sample_manifest(path.read_bytes(), where=str(path))
        return _opened(str(prefix), sample_layout(samples, manifest), manifest)
    stem = find_stem(prefix)
    return _opened(str(prefix), token_layout(stem), None if bare else read_manifest(stem))


def open_pair(stem: Path) -> DatasetFiles:
    """The bare pair at `stem`."""
    return _opened(str(stem), token_layout(stem), None)


def token_layout(stem: Path) -> Layout:
    """Where a token dataset's files stand."""
    return Layout(stem=stem, pairs=(Pair("tokens", "", stem),))


def sample_layout(stem: Path, manifest: SampleManifest) -> Layout:
    """Where a sample dataset's files stand; `stem` ends in `_packed`."""
    prefix = stem.with_name(stem.name.removesuffix(STEM_ENDING))
    pairs = (
        Pair(name, f"{name}.", with_suffix(prefix, ending))
        for name, ending in manifest.pairs.items()
    )
    return Layout(stem=stem, pairs=tuple(pairs))


def output_layout(prefix: Path, like: DatasetFiles) -> Layout:
    """Where a dataset of that kind goes: a bare pair to `prefix`, others as preprocessing does."""
    if prefix.suffix in (".bin", ".idx"):
        prefix = prefix.with_suffix("")
    if like.manifest is None:
        return token_layout(prefix)
    if isinstance(like.manifest, Manifest):
        ending = f"_{like.manifest.key}_{like.manifest.level}"
        return token_layout(_ending_in(prefix, ending))
    return sample_layout(_ending_in(prefix, STEM_ENDING), like.manifest)


def read_header(stem: Path) -> Header:
    """The header of a pair's index; both files are as long as they say where that can be told."""
    path = with_suffix(stem, ".idx")
    with path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        raise FormatError(f"{path}: magic {head[:9]!r}, want {MAGIC!r} (Megatron index)")
    _, version, code, num_sequences, num_entries = _HEADER.unpack(head)
    if version != VERSION or code not in DTYPE_CODES:
        raise FormatError(
            f"{path}: version {version}, dtype code {code}; want version {VERSION} and a code of "
            f"{listed(map(str, DTYPE_CODES))}"
        )
    wanted = HEADER_BYTES + 12 * num_sequences + 8 * num_entries
    if (found := path.stat().st_size) != wanted:
        raise FormatError(f"{path}: {found} bytes, want {wanted} for {num_sequences} sequences")
    return Header(DTYPE_CODES[code], num_sequences, num_entries - 1)


def _ending_in(prefix: Path, ending: str) -> Path:
    return prefix if prefix.name.endswith(ending) else with_suffix(prefix, ending)


def _opened(name: str, layout: Layout, manifest: DatasetManifest | None) -> DatasetFiles:
    headers = tuple(read_header(pair.stem) for pair in layout.pairs)
    counts = {header.num_documents for header in headers}
    if len(counts) > 1:
        raise FormatError(f"{name}: columns of {listed(map(str, sorted(counts)))} rows, want one")
    for entry, path in layout.files.items():
        wanted = manifest.files[entry].bytes if manifest else None
        found = path.stat().st_size if path.exists() else None
        if found is None or (wanted is not None and found != wanted):
            what = "missing" if found is None else f"{found} bytes"
            raise DataError(f"{path}: {what}, {layout.manifest.name} wants {wanted}")
    return DatasetFiles(name=name, layout=layout, headers=headers, manifest=manifest)
