"""The tensors behind a weight source: made from Hugging Face's by rules, or cut from Megatron's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llm_ckpt.blocks import Param
from llm_ckpt.errors import CheckpointError, FormatError
from llm_ckpt.formats.quantized import Stored
from llm_ckpt.formats.slab import Files, Slab
from llm_ckpt.formats.tiled import Tiled
from llm_ckpt.layout import (
    Box,
    Shape,
    Shard,
    assemble,
    assemble_blocks,
    assemble_into,
    cut,
    piece_boxes,
    piece_shape,
)
from llm_ckpt.rules import STACKED
from llm_ckpt.table import Entry, Part, Table

_COMPARED_BYTES = 8 << 20


class Tensors(Protocol):
    """What a format gives: dtypes, and any rank's piece of any parameter."""

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype."""
        ...

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """The piece of `param` that `shard` holds; `padded` is its full shape there."""
        ...

    def close(self) -> None:
        """Close files."""
        ...


@runtime_checkable
class Streams(Protocol):
    """Tensors that can also be read a few rows at a time."""

    def blocks(self, param: Param, shard: Shard, padded: Shape) -> Iterator[Tensor]:
        """The rows of `read` in turn; a block is valid until the next one is taken."""
        ...


class HfTensors:
    """Parameters made from Hugging Face tensors by the family's rules."""

    def __init__(self, table: Table, stored: Mapping[str, Stored], *, where: str) -> None:
        table.check_hf_names(stored, where=where)
        for part in table.hf_parts():
            if stored[part.name].shape != part.stored_shape:
                raise FormatError(
                    f"{stored[part.name].path}: {part.name} has shape "
                    f"{list(stored[part.name].shape)}, want {list(part.stored_shape)}"
                )
        for copy, of in table.copies.items():
            if copy in stored and not _is_alike(stored[copy], stored[of]):
                raise _not_one_tensor(stored[copy], copy, of)
        self._table, self._stored, self._files = table, stored, Files()

    def dtype(self, name: str) -> torch.dtype:
        """The parts' common dtype."""
        found = {part.name: self._stored[part.name].dtype for part in self._entry(name).parts}
        if len(set(found.values())) > 1:
            text = ", ".join(f"{part} {dtype}" for part, dtype in found.items())
            raise FormatError(f"{name}: its parts have different dtypes: {text}")
        return next(iter(found.values()))

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """Read each part's piece, then merge. What is read is compared with its copies."""
        entry, arch = self._entry(param.name), self._table.arch
        self.dtype(param.name)
        if not entry.rule.commutes(shard.size, arch):
            merged = self.read(param, Shard(0, 1), param.shape)
            return cut(merged, param.cut, shard, where=param.name)
        pieces = [self._piece(part, shard, padded) for part in entry.parts]
        if isinstance(entry.rule, STACKED):
            return _stack(pieces)
        return entry.rule.merge([piece.read() for piece in pieces], arch)

    def blocks(self, param: Param, shard: Shard, padded: Shape) -> Iterator[Tensor]:
        """Row by row where rules leave rows as they are, else what `read` gives."""
        entry = self._entry(param.name)
        if not isinstance(entry.rule, STACKED):
            yield self.read(param, shard, padded)
            return
        self.dtype(param.name)
        for part in entry.parts:
            yield from self._piece(part, shard, padded).blocks()

    def close(self) -> None:
        """Close files."""
        self._files.close()

    def _piece(self, part: Part, shard: Shard, padded: Shape) -> "_Piece":
        stored = self._stored[part.name]
        if part.index is not None:
            stored = stored.entry(part.index)
        shape = padded if part.cut.padded else part.shape
        boxes = piece_boxes(shape, part.cut, shard, where=part.name)
        return _Piece(boxes, stored, self._files, self._copies(part))

    def _entry(self, name: str) -> Entry:
        return self._table.entries[name]

    def _copies(self, part: Part) -> tuple["_Copy", ...]:
        """Where the tensor is stored again."""
        pairs = self._table.copies.items()
        names = (copy for copy, of in pairs if of == part.name and copy in self._stored)
        return tuple(_Copy(name, part.name, self._stored[name]) for name in names)


class MegatronTensors:
    """Parameters assembled from the tiles of a Megatron checkpoint."""

    def __init__(self, tiled: Tiled) -> None:
        self._tiled, self._files = tiled, Files()

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype."""
        return self._tiled.dtypes[name]

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """Copy the overlap of every tile with the wanted boxes."""
        boxes = piece_boxes(padded, param.cut, shard, where=param.name)
        fill = partial(self._tiled.read, self._files, param.name)
        return assemble(boxes, param.shape, self.dtype(param.name), fill)

    def blocks(self, param: Param, shard: Shard, padded: Shape) -> Iterator[Tensor]:
        """The same, a few rows at a time."""
        boxes = piece_boxes(padded, param.cut, shard, where=param.name)
        fill = partial(self._tiled.read, self._files, param.name)
        return assemble_blocks(boxes, param.shape, self.dtype(param.name), fill)

    def close(self) -> None:
        """Close files."""
        self._files.close()


@dataclass(frozen=True, slots=True)
class _Piece:
    """The boxes that a rank holds of a stored tensor."""

    boxes: tuple[Box, ...]
    stored: Stored
    files: Files
    copies: tuple["_Copy", ...] = ()

    def read(self) -> Tensor:
        """As a new tensor."""
        return assemble(self.boxes, self.stored.shape, self.stored.dtype, self._fill)

    def blocks(self) -> Iterator[Tensor]:
        """A few rows at a time; dequantising works on larger blocks of its own."""
        if isinstance(self.stored, Slab):
            return assemble_blocks(self.boxes, self.stored.shape, self.stored.dtype, self._fill)
        return iter([self.read()])

    def read_into(self, out: Tensor) -> None:
        """Into its place in a larger one."""
        assemble_into(out, self.boxes, self.stored.shape, self._fill)

    def _fill(self, box: Box, out: Tensor) -> None:
        self.stored.read(self.files, box, out)
        for copy in self.copies:
            copy.check(self.files, box, out)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A tensor that must equal the one called `of`."""

    name: str
    of: str
    stored: Stored

    def check(self, files: Files, box: Box, wanted: Tensor) -> None:
        """Compare a box with what the other one holds there, a few rows at a time."""
        row = prod(box.shape[1:]) * wanted.itemsize
        for rows in wanted.split(max(1, _COMPARED_BYTES // max(1, row))):
            stop = (box.start[0] + rows.shape[0], *box.stop[1:])
            found = torch.empty(rows.shape, dtype=rows.dtype)
            self.stored.read(files, Box(box.start, stop), found)
            box = Box((stop[0], *box.start[1:]), box.stop)
            if not torch.equal(found.view(torch.uint8), rows.view(torch.uint8)):
                raise _not_one_tensor(self.stored, self.name, self.of)


def _is_alike(a: Stored, b: Stored) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _not_one_tensor(stored: Stored, copy: str, of: str) -> CheckpointError:
    return CheckpointError(
        f"{stored.path}: {copy} differs from {of}, but tie_word_embeddings says they are one tensor"
    )


def _stack(pieces: Sequence[_Piece]) -> Tensor:
    """The pieces end to end on axis 0, each read into its place."""
    if len(pieces) == 1:
        return pieces[0].read()
    shapes = [piece_shape(piece.boxes) for piece in pieces]
    heights = [shape[0] for shape in shapes]
    out = torch.empty((sum(heights), *shapes[0][1:]), dtype=pieces[0].stored.dtype)
    for piece, rows in zip(pieces, out.split(heights), strict=True):
        piece.read_into(rows)
    return out
