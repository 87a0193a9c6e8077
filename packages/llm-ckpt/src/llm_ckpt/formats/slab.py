"""Dense tensors inside files, read by position: only the wanted bytes, into the caller's memory.

`pread` rather than `mmap`, so that resident memory is what the caller holds and a file that shrinks
raises instead of killing the process.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_ckpt.errors import FormatError
from llm_ckpt.layout import Box, Shape, whole

_BLOCK_BYTES = 8 << 20
_PAGE_BYTES = 4096
# Pieces of rows shorter than this are read together with what lies between: a call costs more.
_FAR_BYTES = 64 << 10
_ROWS_A_CALL = 512  # half of what a call may fill
_MAX_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Slab:
    """A contiguous tensor at `offset` bytes of a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> "Slab":
        """The slab of rows `start..stop`."""
        row = prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        return replace(self, offset=self.offset + start * row, shape=shape)

    def elements(self, start: int, shape: Shape) -> "Slab":
        """The slab of `shape` whose first element is number `start` of this one's."""
        return replace(self, offset=self.offset + start * self.dtype.itemsize, shape=shape)

    def entry(self, index: int) -> "Slab":
        """The slab of entry `index` of axis 0."""
        shape = self.shape[1:]
        size = prod(shape) * self.dtype.itemsize
        return replace(self, offset=self.offset + index * size, shape=shape)

    def read(self, files: "Files", box: Box, out: Tensor) -> None:
        """Copy a box of it into `out`, which has the box's shape and any strides."""
        files.read(self, box, out)


@dataclass(frozen=True, slots=True)
class Tile:
    """A stored part of a tensor: the box it fills and (resolved on use) where it lies.

    With `column` the slab is transposed: the box's rows are its columns from that one on.
    """

    box: Box
    slab: Callable[[], Slab]
    column: int | None = None


class Files:
    """Read-only descriptors, opened on use; the least recently used are closed first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def descriptor(self, path: Path) -> int:
        """An open descriptor of `path`."""
        if path not in self._open:
            while len(self._open) >= _MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, slab: Slab, box: Box, out: Tensor) -> None:
        """Copy `box` of `slab` into `out`, which has the box's shape and any strides."""
        if not slab.shape:
            slab, box, out = replace(slab, shape=(1,)), whole((1,)), out.reshape(1)
        rows = slab.rows(box.start[0], box.stop[0])
        if box.shape[1:] == slab.shape[1:]:
            self._read_rows(rows, out)
        elif _row_bytes(box.shape, slab.dtype) >= _PAGE_BYTES and _has_flat_rows(out):
            self._read_columns(rows, box, out)
        else:
            self._read_blocks(rows, box, out)

    def _read_rows(self, slab: Slab, out: Tensor) -> None:
        if out.is_contiguous():
            self._fill(slab, out)
        else:
            self._read_blocks(slab, whole(slab.shape), out)

    def _read_columns(self, slab: Slab, box: Box, out: Tensor) -> None:
        row, skip = _row_bytes(slab.shape, slab.dtype), _skip_bytes(slab, box)
        flat: Any = out.reshape(out.shape[0], -1).view(torch.uint8).numpy()
        descriptor, start = self.descriptor(slab.path), slab.offset + skip
        gap = row - flat.shape[1]
        if flat.shape[1] >= _FAR_BYTES:
            for i in range(slab.shape[0]):
                _read_at(slab.path, descriptor, start + i * row, [memoryview(flat[i])])
            return
        unwanted = memoryview(bytearray(gap))
        for first in range(0, slab.shape[0], _ROWS_A_CALL):
            views: list[memoryview] = []
            for piece in flat[first : first + _ROWS_A_CALL]:
                views += [memoryview(piece), unwanted]
            _read_at(slab.path, descriptor, start + first * row, views[:-1])

    def _read_blocks(self, slab: Slab, box: Box, out: Tensor) -> None:
        height = max(1, _BLOCK_BYTES // max(1, _row_bytes(slab.shape, slab.dtype)))
        columns = tuple(slice(a, b) for a, b in zip(box.start[1:], box.stop[1:], strict=True))
        for start in range(0, slab.shape[0], height):
            part = slab.rows(start, min(start + height, slab.shape[0]))
            block = torch.empty(part.shape, dtype=slab.dtype)
            self._fill(part, block)
            out[start : start + part.shape[0]] = block[(slice(None), *columns)]

    def _fill(self, slab: Slab, out: Tensor) -> None:
        if out.numel():
            _read_at(slab.path, self.descriptor(slab.path), slab.offset, [byte_view(out)])


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, shared with it."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def check_length(slabs: Sequence[Slab]) -> None:
    """Refuse slabs that reach past the end of their file."""
    sizes: dict[Path, int] = {}
    for slab in slabs:
        if slab.path not in sizes:
            sizes[slab.path] = slab.path.stat().st_size
        size = sizes[slab.path]
        if slab.offset < 0 or slab.offset + slab.nbytes > size:
            raise FormatError(
                f"{slab.path}: {size} bytes, want at least {slab.offset + slab.nbytes} (truncated?)"
            )


def _row_bytes(shape: Shape, dtype: torch.dtype) -> int:
    return prod(shape[1:]) * dtype.itemsize


def _skip_bytes(slab: Slab, box: Box) -> int:
    if box.shape[2:] != slab.shape[2:]:
        raise FormatError(f"{slab.path}: a cut on axis 2 or later is not supported")
    return box.start[1] * prod(slab.shape[2:]) * slab.dtype.itemsize


def _has_flat_rows(out: Tensor) -> bool:
    return out.is_contiguous() or (out.dim() == 2 and out.stride(1) == 1)


def _read_at(path: Path, descriptor: int, offset: int, views: list[memoryview]) -> None:
    """Fill the views with the file's bytes from `offset` on, one after the other."""
    left = sum(map(len, views))
    while left:
        count = os.preadv(descriptor, views, offset)
        if count == 0:
            raise FormatError(f"{path}: ends at byte {offset}, want {left} more")
        offset, left = offset + count, left - count
        while left and count >= len(views[0]):
            count -= len(views.pop(0))
        if left:
            views[0] = views[0][count:]
