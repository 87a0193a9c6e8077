"""`.metadata` of torch_dist: read through an allow-list, written as torch writes it."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from llm_ckpt.errors import FormatError
from llm_ckpt.formats.unpickle import Stub, load_with
from llm_ckpt.layout import Box, Shape

METADATA = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One stored part of a tensor: its box, and the span of the file that holds it."""

    box: Box
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One tensor of the checkpoint."""

    dtype: torch.dtype
    shape: Shape
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class DistMetadata:
    """Tensors by key, and the keys of other objects with their spans (file, offset, length)."""

    tensors: Mapping[str, StoredKey]
    objects: Mapping[str, tuple[str, int, int]]


def read_metadata(folder: Path) -> DistMetadata:
    """Parse `.metadata`; nothing of it is executed."""
    path = folder / METADATA
    if not path.is_file():
        raise FormatError(f"{path}: file is missing")
    root = load_with(path.read_bytes(), _find, where=str(path))
    spans: dict[tuple[str, Shape | None], tuple[str, int, int]] = {}
    tensors: dict[str, StoredKey] = {}
    objects: dict[str, tuple[str, int, int]] = {}
    try:
        for index, info in root.storage_data.items():
            start = getattr(index, "offset", None)  # absent for objects
            offset = None if start is None else tuple(start)
            spans[index.fqn, offset] = _span(info, where=f"{path}: {index.fqn}")
        for key, entry in root.state_dict_metadata.items():
            if isinstance(entry, _Tensor):
                tensors[key] = _stored(key, entry, spans, where=str(path))
            else:
                objects[key] = spans[key, None]
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: malformed: {error!r}") from None
    return DistMetadata(tensors, objects)


def metadata_bytes(metadata: DistMetadata) -> bytes:
    """The pickle that torch.distributed.checkpoint reads."""
    from torch.distributed.checkpoint import metadata as dcp  # slow to import
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    state: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    for key, stored in metadata.tensors.items():
        chunks = [
            dcp.ChunkStorageMetadata(torch.Size(c.box.start), torch.Size(c.box.shape))
            for c in stored.chunks
        ]
        properties = dcp.TensorProperties(dtype=stored.dtype)
        state[key] = dcp.TensorStorageMetadata(properties, torch.Size(stored.shape), chunks)
        for i, c in enumerate(stored.chunks):
            index = dcp.MetadataIndex(key, torch.Size(c.box.start), i)
            storage[index] = _StorageInfo(c.file, c.offset, c.length)
    for key, span in metadata.objects.items():
        state[key] = dcp.BytesStorageMetadata()
        storage[dcp.MetadataIndex(key)] = _StorageInfo(*span)
    return pickle.dumps(
        dcp.Metadata(state, None, storage, dcp.StorageMeta(), version="1.0.0"), protocol=4
    )


def _stored(
    key: str,
    entry: "_Tensor",
    spans: Mapping[tuple[str, Shape | None], tuple[str, int, int]],
    *,
    where: str,
) -> StoredKey:
    chunks: list[Chunk] = []
    for chunk in entry.chunks:
        start = tuple(chunk.offsets)
        if (key, start) not in spans:
            raise FormatError(f"{where}: chunk {start} of {key} is stored nowhere")
        stop = tuple(a + n for a, n in zip(start, chunk.sizes, strict=True))
        chunks.append(Chunk(Box(start, stop), *spans[key, start]))
    return StoredKey(entry.properties.dtype, tuple(entry.size), tuple(chunks))


def _span(info: Any, *, where: str) -> tuple[str, int, int]:
    name = str(info.relative_path)
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise FormatError(f"{where}: path {name!r} is not a bare file name")
    if getattr(info, "transform_descriptors", None):
        raise FormatError(f"{where}: stored with transforms {info.transform_descriptors}")
    return name, int(info.offset), int(info.length)


class _Record(SimpleNamespace):
    """Any class of `.metadata`: its fields, no behaviour."""

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            self.__dict__.update(part or {})


class _Tensor(_Record):
    """TensorStorageMetadata."""


class _Index(_Record):
    """MetadataIndex, a dictionary key."""

    def __hash__(self) -> int:  # type: ignore[override] # SimpleNamespace sets it to None
        return id(self)


class _Properties(_Record):
    """TensorProperties, whose state is a tuple that starts with the dtype."""

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0] if isinstance(state, tuple) else state["dtype"]


_CLASSES: Mapping[tuple[str, str], object] = {
    (_METADATA, "Metadata"): _Record,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "BytesStorageMetadata"): _Record,
    (_METADATA, "ChunkStorageMetadata"): _Record,
    (_METADATA, "TensorProperties"): _Properties,
    (_METADATA, "StorageMeta"): _Record,
    (_METADATA, "_MEM_FORMAT_ENCODING"): Stub,
    (_FILESYSTEM, "_StorageInfo"): _Record,
    (_FILESYSTEM, "_StoragePrefix"): _Record,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): Stub,
    ("collections", "OrderedDict"): dict,
    ("pathlib", "PosixPath"): Stub,
    ("pathlib", "Path"): Stub,
    # Plans that newer megatron-core versions put beside; nothing of them is used.
    ("torch.distributed.checkpoint.planner", "SavePlan"): _Record,
    ("torch.distributed.checkpoint.planner", "WriteItem"): _Record,
    ("torch.distributed.checkpoint.planner", "WriteItemType"): Stub,
    ("torch.distributed.checkpoint.planner", "TensorWriteData"): _Record,
}


def _find(module: str, name: str) -> object | None:
    if (module, name) in _CLASSES:
        return _CLASSES[module, name]
    if module.startswith("megatron.core.dist_checkpointing."):
        return _Record
    dtype = getattr(torch, name, None) if module == "torch" else None
    return dtype if isinstance(dtype, torch.dtype) else None
