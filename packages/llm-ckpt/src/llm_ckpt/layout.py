"""How one tensor-parallel rank's piece lies in the whole tensor: boxes, cut and join.

A `Box` is a rectangle of a tensor. A piece is one or more boxes laid end to end on axis 0 (a gated
projection holds its rows of both halves) or a single box (everything else). Readers copy the
overlap of the boxes they want with the boxes they have, so any layout reads any other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import torch
from torch import Tensor

from llm_ckpt.errors import LayoutError

Shape = tuple[int, ...]


class Cut(StrEnum):
    """How tensor parallelism divides a parameter."""

    WHOLE = "whole"  # every rank holds all of it
    ROWS = "rows"  # column-parallel layers: axis 0
    COLUMNS = "columns"  # row-parallel layers: axis 1
    GATED = "gated"  # axis 0 of each half: rank r holds [gate_r; up_r]
    VOCAB = "vocab"  # axis 0, padded with zero rows to a common multiple


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank of a tensor-parallel group."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise LayoutError(f"tensor-parallel rank {self.rank} is not in 0..{self.size - 1}")


FULL = Shard(0, 1)


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open ranges `start[i] <= x < stop[i]`, one an axis."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        """Extent on each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def numel(self) -> int:
        """Elements inside."""
        return prod(self.shape)

    def overlap(self, other: "Box") -> "Box | None":
        """The common part, or None when there is none."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def within(self, origin: "Box") -> tuple[slice, ...]:
        """Slices that select this box from a tensor holding `origin`."""
        pairs = zip(self.start, self.stop, origin.start, strict=True)
        return tuple(slice(a - o, b - o) for a, b, o in pairs)


def whole(shape: Shape) -> Box:
    """The box of a whole tensor."""
    return Box((0,) * len(shape), shape)


def padded_vocab(vocab_size: int, *, multiple: int, tp: int) -> int:
    """Rows of a vocabulary tensor: the next multiple of `multiple * tp`, as Megatron-LM pads."""
    step = multiple * tp
    return (vocab_size + step - 1) // step * step


def piece_boxes(shape: Shape, cut: Cut, shard: Shard, *, where: str) -> tuple[Box, ...]:
    """The boxes of `shape` that `shard` holds, in the order it stores them.

    For `VOCAB` pass the padded shape.
    """
    if cut is Cut.WHOLE or shard.size == 1:
        return (whole(shape),)
    if cut is Cut.GATED:
        half = _divide(shape[0] // 2, shard, where=where, what="rows of each half")
        starts = (shard.rank * half, shape[0] // 2 + shard.rank * half)
        return tuple(_rows(shape, start, start + half) for start in starts)
    if cut is Cut.COLUMNS:
        width = _divide(shape[1], shard, where=where, what="columns")
        start = shard.rank * width
        return (Box((0, start), (shape[0], start + width)),)
    height = _divide(shape[0], shard, where=where, what="rows")
    return (_rows(shape, shard.rank * height, (shard.rank + 1) * height),)


def piece_shape(boxes: Sequence[Box]) -> Shape:
    """Shape of the piece made of `boxes`."""
    first = boxes[0].shape
    return (sum(box.shape[0] for box in boxes), *first[1:]) if len(boxes) > 1 else first


def assemble(
    boxes: Sequence[Box], extent: Shape, dtype: torch.dtype, fill: Callable[[Box, Tensor], None]
) -> Tensor:
    """A new tensor of `boxes`; `fill(box, out)` fills each one's part that lies inside `extent`.

    What lies outside (vocabulary padding) is zero.
    """
    shape = piece_shape(boxes)
    inside = [box.overlap(whole(extent)) if extent else box for box in boxes]
    is_padded = any(part != box for part, box in zip(inside, boxes, strict=True))
    out = torch.zeros(shape, dtype=dtype) if is_padded else torch.empty(shape, dtype=dtype)
    offset = 0
    for box, part in zip(boxes, inside, strict=True):
        rows = out[offset : offset + box.shape[0]] if box.shape else out
        if part is not None:
            fill(part, rows[part.within(box)])
        offset += box.shape[0] if box.shape else 0
    return out


def cut(tensor: Tensor, how: Cut, shard: Shard, *, where: str = "tensor") -> Tensor:
    """Rank `shard.rank`'s piece of a whole (for `VOCAB`: padded) tensor."""
    boxes = piece_boxes(tuple(tensor.shape), how, shard, where=where)
    parts = [tensor[box.within(whole(tuple(tensor.shape)))] for box in boxes]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def join(pieces: Sequence[Tensor], how: Cut) -> Tensor:
    """The whole tensor from every rank's piece; the inverse of `cut`."""
    if how is Cut.WHOLE or len(pieces) == 1:
        return pieces[0]
    if how is Cut.COLUMNS:
        return torch.cat(list(pieces), dim=1)
    if how is Cut.GATED:
        halves = [piece.chunk(2) for piece in pieces]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    return torch.cat(list(pieces))


def missing_part(shape: Shape, boxes: Sequence[Box]) -> str | None:
    """Why `boxes` do not tile `shape` exactly, or None when they do."""
    for i, box in enumerate(boxes):
        if len(box.shape) != len(shape) or box.overlap(whole(shape)) != box:
            return f"chunk {box.start}..{box.stop} lies outside {shape}"
        for other in boxes[:i]:
            if box.overlap(other):
                return f"chunks {other.start}..{other.stop} and {box.start}..{box.stop} overlap"
    found, wanted = sum(box.numel for box in boxes), prod(shape)
    return None if found == wanted else f"{found} of {wanted} elements are stored"


def _rows(shape: Shape, start: int, stop: int) -> Box:
    return Box((start, *(0,) * (len(shape) - 1)), (stop, *shape[1:]))


def _divide(extent: int, shard: Shard, *, where: str, what: str) -> int:
    if extent % shard.size:
        raise LayoutError(
            f"{where}: {extent} {what} do not divide by tp({shard.size}): "
            f"{extent} % {shard.size} = {extent % shard.size}"
        )
    return extent // shard.size
