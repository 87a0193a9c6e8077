"""Token datasets on disk: opening, writing and verifying."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from llm_data.edge.datasets.spool import Spool, SpoolMark, hash_of
from llm_data.edge.durable import sync_folder, with_suffix
from llm_data.errors import DataError, FormatError, listed
from llm_data.formats.indexed import unpack_index
from llm_data.formats.manifest import Manifest, unpack_manifest
from llm_data.formats.token_dataset import TokenDataset, check_dataset


class TokenDatasetWriter:
    """Writes `<stem>.bin` and `<stem>.idx` as a context; on an error nothing appears.

    The pair has no manifest: `preprocess` writes one, because it knows the tokenizer.
    """

    def __init__(self, stem: Path, *, dtype: np.dtype[np.generic]) -> None:
        self._stem = stem
        self._folder = stem.with_name(f".{stem.name}.writing")
        self._dtype = dtype
        shutil.rmtree(self._folder, ignore_errors=True)
        self._spool = Spool(self._folder, dtype=dtype, mark=SpoolMark())

    def add_document(self, tokens: NDArray[np.integer], *, lengths: Sequence[int] = ()) -> None:
        """One document, as one sequence or cut into sequences of the given lengths."""
        sizes = np.array(lengths or [len(tokens)], dtype="<i4")
        if int(sizes.sum()) != len(tokens):
            raise ValueError(f"lengths sum to {sizes.sum()}, the document has {len(tokens)} tokens")
        limits = np.iinfo(cast("np.dtype[np.integer]", self._dtype))
        if len(tokens) and (tokens.min() < limits.min or tokens.max() > limits.max):
            raise ValueError(f"a token is outside {self._dtype}: {tokens.min()} to {tokens.max()}")
        self._spool.append(
            tokens.astype(self._dtype).tobytes(),
            lengths=sizes.tobytes(),
            sizes=np.array([len(sizes)], dtype="<i4").tobytes(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._spool.write_index()
                self._spool.tokens_path.replace(with_suffix(self._stem, ".bin"))
                self._spool.index_path.replace(with_suffix(self._stem, ".idx"))
                sync_folder(self._stem.parent)
        finally:
            self._spool.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def open_token_dataset(prefix: Path) -> TokenDataset:
    """The dataset at `prefix`, memory mapped; header, sizes and table ends are checked."""
    stem = find_stem(prefix)
    index_path, bin_path = with_suffix(stem, ".idx"), with_suffix(stem, ".bin")
    index = unpack_index(_mapped(index_path), where=str(index_path))
    found = bin_path.stat().st_size
    if found != index.bin_bytes:
        raise FormatError(
            f"{bin_path}: {found} bytes, but {index_path.name} wants {index.bin_bytes}"
        )
    if index.dtype.kind not in "iu":
        raise FormatError(
            f"{index_path}: dtype {index.dtype.name}, want an integer type for tokens"
        )
    dtype = cast("np.dtype[np.integer]", index.dtype)
    # An empty file cannot be mapped.
    tokens = np.memmap(bin_path, dtype=dtype, mode="r") if found else np.empty(0, dtype=dtype)
    return TokenDataset(name=str(stem), index=index, tokens=tokens, manifest=read_manifest(stem))


def read_manifest(stem: Path) -> Manifest | None:
    """The manifest beside a pair, None where there is none."""
    path = with_suffix(stem, ".json")
    return unpack_manifest(path.read_bytes(), where=str(path)) if path.exists() else None


def verify(prefix: Path, *, index_only: bool = False) -> TokenDataset:
    """The dataset after checking every table, token and checksum.

    Raises FormatError with what is wrong first.
    """
    dataset = open_token_dataset(prefix)
    if dataset.manifest is None and not index_only:
        raise FormatError(f"{dataset.name}.json: no manifest; --index-only checks the pair alone")
    check_dataset(dataset)
    for name, entry in (dataset.manifest.files if dataset.manifest else {}).items():
        path = Path(f"{dataset.name}.{name}")
        size = path.stat().st_size
        if size != entry.bytes:
            raise FormatError(f"{path}: {size} bytes, the manifest wants {entry.bytes}")
        if (digest := hash_of(path, size).hexdigest()) != entry.sha256:
            raise FormatError(f"{path}: sha256 {digest}, the manifest wants {entry.sha256}")
    return dataset


def find_stem(prefix: Path) -> Path:
    """The one dataset `prefix` means: the pair itself, or the only `<prefix>_*_document`."""
    if prefix.suffix in (".bin", ".idx", ".json"):
        prefix = prefix.with_suffix("")
    if _is_pair(prefix):
        return prefix
    pattern = f"{prefix.name}_*_document.idx"
    stems = [path.with_suffix("") for path in sorted(prefix.parent.glob(pattern))]
    if len(stems) == 1 and _is_pair(stems[0]):
        return stems[0]
    if len(stems) > 1:
        raise DataError(f"{prefix}: means {listed(map(str, stems))}; name one")
    stem = stems[0] if stems else prefix
    halves = [f"{stem}{end}" for end in (".bin", ".idx") if not with_suffix(stem, end).exists()]
    also = "" if stems else f", nor {prefix}_*_document.idx"
    raise DataError(f"{prefix}: no token dataset: {' and '.join(halves)} missing{also}")


def _is_pair(stem: Path) -> bool:
    return with_suffix(stem, ".idx").is_file() and with_suffix(stem, ".bin").is_file()


def _mapped(path: Path) -> memoryview:
    if not path.stat().st_size:
        return memoryview(b"")
    return np.memmap(path, dtype=np.uint8, mode="r").data
