"""torch.save's zip files, written as a stream and read without loading.

The order of records in a zip is free, so tensors go first as they come and `data.pkl`, which
describes them, goes last. Each record starts at a multiple of 64 bytes, as torch writes it, so
that `torch.load(mmap=True)` works.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2  # the name torch.save writes

from llm_ckpt.errors import FormatError
from llm_ckpt.formats.slab import Slab
from llm_ckpt.formats.stream import byte_views
from llm_ckpt.formats.unpickle import STORAGES, Lazy, load_state
from llm_ckpt.formats.zip_stream import LOCAL_HEADER_BYTES, CheckedSink, ZipStream
from llm_ckpt.layout import Shape

_ROOT = "archive"
_ALIGN = 64


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor already written as record `key`; put it in the object given to `finish`."""

    dtype: torch.dtype
    key: str
    shape: Shape


class TorchZipWriter:
    """One torch.save file; memory is one block of one tensor."""

    def __init__(self, sink: CheckedSink) -> None:
        self._zip = ZipStream(sink, align=_ALIGN)
        self._count = 0

    def tensor(self, parts: Iterable[Tensor], dtype: torch.dtype, shape: Shape) -> StoredTensor:
        """Write a tensor whose bytes are those of `parts`, cast to `dtype`, end to end."""
        stored = StoredTensor(dtype, str(self._count), shape)
        self._count += 1
        with self._zip.record(f"{_ROOT}/data/{stored.key}", prod(shape) * dtype.itemsize):
            for part in parts:
                for view in byte_views(part, dtype):
                    self._zip.write(view)
        return stored

    def finish(self, value: object) -> None:
        """Write the object, with `StoredTensor` for tensors, and close the zip."""
        buffer = io.BytesIO()
        _StatePickler(buffer, protocol=2).dump(value)
        records = (("data.pkl", buffer.getvalue()), ("byteorder", b"little"), ("version", b"3\n"))
        for name, data in records:
            with self._zip.record(f"{_ROOT}/{name}", len(data)):
                self._zip.write(data)
        self._zip.close()


@dataclass(frozen=True, slots=True)
class TorchZip:
    """A torch.save file opened for reading: its object with `Lazy` tensors, and where they lie."""

    path: Path
    value: Any
    records: dict[str, tuple[int, int]]

    def slab(self, lazy: Lazy) -> Slab:
        """Where a tensor's bytes lie in the file."""
        if not lazy.is_contiguous:
            raise FormatError(f"{self.path}: a tensor of {lazy.shape} is stored with strides")
        if lazy.storage.key not in self.records:
            raise FormatError(f"{self.path}: record data/{lazy.storage.key} is missing")
        start, length = self.records[lazy.storage.key]
        slab = Slab(
            self.path,
            start + lazy.offset * lazy.storage.dtype.itemsize,
            lazy.storage.dtype,
            lazy.shape,
        )
        if slab.offset + slab.nbytes > start + length:
            raise FormatError(
                f"{self.path}: record data/{lazy.storage.key} has {length} bytes, "
                f"want {slab.nbytes} for {list(lazy.shape)}"
            )
        return slab


def read_torch_zip(path: Path, *, start: int = 0, length: int | None = None) -> TorchZip:
    """Open a torch.save file, or the part of a file that is one."""
    with path.open("rb") as file:
        total = path.stat().st_size - start if length is None else length
        window = _Window(file, start, total)
        try:
            archive = zipfile.ZipFile(cast("IO[bytes]", io.BufferedReader(window)))
        except zipfile.BadZipFile as error:
            raise FormatError(
                f"{path}: not a torch.save zip file ({error}); truncated, or older than torch 1.6?"
            ) from None
        names = archive.namelist()
        root = next((n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")), None)
        if root is None:
            raise FormatError(f"{path}: a zip without data.pkl")
        spans = {
            info.filename.removeprefix(root): _span(path, window, info)
            for info in archive.infolist()
            if info.filename.startswith(root)
        }
        begin, size = spans["data.pkl"]
        window.seek(begin)
        data = window.read(size) or b""
    records = {
        name.removeprefix("data/"): (start + at, size)
        for name, (at, size) in spans.items()
        if name.startswith("data/")
    }
    return TorchZip(path, load_state(data, where=str(path)), records)


def _span(path: Path, window: "_Window", info: zipfile.ZipInfo) -> tuple[int, int]:
    """Offset and length of a record's bytes inside the window.

    The crc is not checked: torch can be told to leave it out.
    """
    if info.compress_type != zipfile.ZIP_STORED:
        raise FormatError(f"{path}: record {info.filename} is compressed")
    window.seek(info.header_offset + 26)
    lengths = window.read(4) or b""
    skip = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    begin = info.header_offset + LOCAL_HEADER_BYTES + skip
    if begin + info.file_size > window.length:
        raise FormatError(f"{path}: record {info.filename} reaches past the end (truncated?)")
    return begin, info.file_size


class _StatePickler(pickle.Pickler):
    def persistent_id(self, obj: object, /) -> object:
        if isinstance(obj, _StorageRef):
            kind = getattr(torch, STORAGES[obj.stored.dtype])
            return ("storage", kind, obj.stored.key, "cpu", prod(obj.stored.shape))
        return None

    def reducer_override(self, obj: object, /) -> Any:
        if not isinstance(obj, StoredTensor):
            return NotImplemented
        strides = tuple(prod(obj.shape[i + 1 :]) for i in range(len(obj.shape)))
        hooks: OrderedDict[str, object] = OrderedDict()
        arguments = (_StorageRef(obj), 0, obj.shape, strides, False, hooks)
        return _rebuild_tensor_v2, arguments


@dataclass(frozen=True, slots=True)
class _StorageRef:
    stored: StoredTensor


class _Window(io.RawIOBase):
    """Part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self.length = file, start, length
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset + (0, self._position, self.length)[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        count = max(0, min(len(buffer), self.length - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
