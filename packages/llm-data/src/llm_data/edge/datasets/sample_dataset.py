"""Sample datasets on disk: finding, opening and verifying."""

import hashlib
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from llm_data.edge.datasets.token_dataset import open_token_dataset
from llm_data.edge.durable import with_suffix
from llm_data.errors import DataError, FormatError, listed
from llm_data.formats.sample_checks import check_samples, check_shape
from llm_data.formats.sample_dataset import SampleDataset
from llm_data.formats.sample_manifest import (
    BOUNDARIES,
    SampleManifest,
    unpack_sample_manifest,
)
from llm_data.formats.token_dataset import TokenDataset

# What follows a prefix in every name, whether rows are packed or not.
STEM_ENDING = "_packed"


def find_sample_stem(prefix: Path) -> Path | None:
    """The stem of the sample dataset that `prefix` means; None if it means a token dataset.

    `data/train`, `data/train_packed` and `data/train_packed.json` mean `data/train_packed`.
    Raises DataError if there is one of each kind, or columns that no manifest describes.
    """
    if prefix.suffix in (".bin", ".idx") or with_suffix(prefix, ".bin").is_file():
        return None
    stem = prefix.with_suffix("") if prefix.suffix == ".json" else prefix
    if stem.name.endswith(STEM_ENDING):
        return stem if _is_manifest(stem) else _without_manifest(prefix, stem)
    if prefix.suffix == ".json":
        return None
    stem = with_suffix(prefix, STEM_ENDING)
    if not _is_manifest(stem):
        return _without_manifest(prefix, stem)
    ours = f"{stem.name}_"
    others = [path for path in _columns(prefix) if not path.name.startswith(ours)]
    if others:
        raise DataError(f"{prefix}: means {listed(map(str, [stem, *others]))}; name one")
    return stem


def open_sample_dataset(prefix: Path) -> SampleDataset:
    """The dataset at `prefix`, memory mapped; the manifest, sizes and headers are checked."""
    stem = find_sample_stem(prefix)
    if stem is None:
        raise DataError(f"{prefix}: no sample dataset: {prefix}{STEM_ENDING}.json is missing")
    path = with_suffix(stem, ".json")
    manifest = unpack_sample_manifest(path.read_bytes(), where=str(path))
    _check_sizes(stem, manifest)
    pairs = {name: open_token_dataset(pair) for name, pair in _pairs(stem, manifest).items()}
    dataset = SampleDataset(
        name=str(stem),
        manifest=manifest,
        boundaries_of_rows=pairs.pop(BOUNDARIES) if manifest.packed else None,
        columns=pairs,
    )
    check_shape(dataset)
    return dataset


def verify_samples(prefix: Path) -> SampleDataset:
    """The dataset after checking every table, row, label, boundary and checksum.

    Raises FormatError with what is wrong first.
    """
    dataset = open_sample_dataset(prefix)
    check_samples(dataset, _read)
    for name, path in _files(Path(dataset.name), dataset.manifest).items():
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        wanted = dataset.manifest.files[name].sha256
        if digest != wanted:
            raise FormatError(f"{path}: sha256 {digest}, the manifest wants {wanted}")
    return dataset


def _read(pair: TokenDataset, start: int, end: int) -> NDArray[np.integer]:
    dtype = cast("np.dtype[np.integer]", pair.index.dtype)
    return np.fromfile(
        f"{pair.name}.bin", dtype=dtype, count=end - start, offset=start * dtype.itemsize
    )


def _pairs(stem: Path, manifest: SampleManifest) -> dict[str, Path]:
    """The stem of each pair by what the manifest calls it."""
    prefix = stem.with_name(stem.name.removesuffix(STEM_ENDING))
    return {name: with_suffix(prefix, ending) for name, ending in manifest.pairs.items()}


def _files(stem: Path, manifest: SampleManifest) -> dict[str, Path]:
    """Each file by what the manifest calls it."""
    return {
        f"{name}.{end}": with_suffix(pair, f".{end}")
        for name, pair in _pairs(stem, manifest).items()
        for end in ("bin", "idx")
    }


def _check_sizes(stem: Path, manifest: SampleManifest) -> None:
    for name, path in _files(stem, manifest).items():
        wanted = manifest.files[name].bytes
        if not path.is_file():
            raise FormatError(f"{path}: missing, {stem.name}.json wants {wanted} bytes")
        if (found := path.stat().st_size) != wanted:
            raise FormatError(f"{path}: {found} bytes, {stem.name}.json wants {wanted}")


def _is_manifest(stem: Path) -> bool:
    return with_suffix(stem, ".json").is_file()


def _columns(stem: Path) -> list[Path]:
    return [
        path.with_suffix("") for path in sorted(stem.parent.glob(f"{stem.name}_*_document.idx"))
    ]


def _without_manifest(prefix: Path, stem: Path) -> None:
    if columns := _columns(stem):
        raise DataError(
            f"{prefix}: {stem}.json is missing, so the run that writes it is unfinished or other "
            f"tools wrote the columns; found {listed(map(str, columns))}, each can be named"
        )
