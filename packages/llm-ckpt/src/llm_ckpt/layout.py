"""How one tensor-parallel rank's piece lies in the whole tensor: boxes, cut and join.

A `Box` is a rectangle of a tensor. A piece is one or more boxes laid end to end on axis 0 (a gated
projection holds its rows of both halves) or a single box (everything else). Readers copy the
overlap of the boxes they want with the boxes they have, so any layout reads any other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import sub

import torch
from torch import Tensor

from llm_ckpt.errors import LayoutError

Shape = tuple[int, ...]
_BLOCK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """How tensor parallelism divides a parameter: an axis, or None when every rank holds it whole.

    With `sections` the axis is a run of parts whose extents are in these proportions, and each is
    divided by itself: rank r holds its piece of every section, in order. A `padded` axis is the
    vocabulary's, filled with zero rows up to a common multiple.
    """

    axis: int | None
    sections: tuple[int, ...] = (1,)
    padded: bool = False


WHOLE = Cut(None)
ROWS = Cut(0)  # column-parallel layers
COLUMNS = Cut(1)  # row-parallel layers
GATED = Cut(0, (1, 1))  # rank r holds [gate_r; up_r]
VOCAB = Cut(0, padded=True)


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
        return tuple(map(sub, self.stop, self.start))

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


def moved(box: Box, rows: int) -> Box:
    """The box `rows` further down axis 0."""
    start, stop = ((at[0] + rows, *at[1:]) for at in (box.start, box.stop))
    return Box(start, stop)


def padded_vocab(vocab_size: int, *, multiple: int, tp: int) -> int:
    """Rows of a vocabulary tensor: the next multiple of `multiple * tp`, as Megatron-LM pads."""
    step = multiple * tp
    return (vocab_size + step - 1) // step * step


def piece_boxes(shape: Shape, cut: Cut, shard: Shard, *, where: str) -> tuple[Box, ...]:
    """The boxes of `shape` that `shard` holds, in the order it stores them.

    For a padded cut pass the padded shape.
    """
    if cut.axis is None or shard.size == 1:
        return (whole(shape),)
    boxes: list[Box] = []
    for start, stop in section_ranges(shape[cut.axis], cut.sections, where=where):
        extent = _divide(stop - start, shard, cut, where=where)
        first = start + shard.rank * extent
        boxes.append(_span(shape, cut.axis, first, first + extent))
    if len(boxes) > 1 and cut.axis != 0:
        raise LayoutError(f"{where}: sections lie on axis {cut.axis}, want axis 0")
    return tuple(boxes)


def section_ranges(
    extent: int, sections: Sequence[int], *, where: str
) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of an axis of `extent` whose lengths are in proportion to `sections`."""
    if len(sections) == 1:
        return ((0, extent),)
    total = sum(sections)
    if any(n * extent % total for n in sections):
        raise LayoutError(f"{where}: {extent} rows are not in the proportions {tuple(sections)}")
    ends = list(accumulate(n * extent // total for n in sections))
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


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
    out = torch.empty(piece_shape(boxes), dtype=dtype)
    assemble_into(out, boxes, extent, fill)
    return out


def assemble_into(
    out: Tensor, boxes: Sequence[Box], extent: Shape, fill: Callable[[Box, Tensor], None]
) -> None:
    """`assemble` into a tensor of that shape."""
    inside = [box.overlap(whole(extent)) if extent else box for box in boxes]
    if any(part != box for part, box in zip(inside, boxes, strict=True)):
        out.zero_()
    offset = 0
    for box, part in zip(boxes, inside, strict=True):
        rows = out[offset : offset + box.shape[0]] if box.shape else out
        if part is not None:
            fill(part, rows[part.within(box)])
        offset += box.shape[0] if box.shape else 0


def assemble_blocks(
    boxes: Sequence[Box], extent: Shape, dtype: torch.dtype, fill: Callable[[Box, Tensor], None]
) -> Iterator[Tensor]:
    """The rows of `assemble` in turn, a few at a time, each time in the same memory.

    A block stays in the processor's cache while it is read, hashed and written.
    """
    for box in boxes:
        height = max(1, _BLOCK_BYTES // max(1, prod(box.shape[1:]) * dtype.itemsize))
        memory = torch.empty((min(height, box.shape[0]), *box.shape[1:]), dtype=dtype)
        for start in range(box.start[0], box.stop[0], height):
            stop = min(start + height, box.stop[0])
            part = Box((start, *box.start[1:]), (stop, *box.stop[1:]))
            rows = memory[: stop - start]
            assemble_into(rows, [part], extent, fill)
            yield rows


def cut(tensor: Tensor, how: Cut, shard: Shard, *, where: str = "tensor") -> Tensor:
    """Rank `shard.rank`'s piece of a whole (for a padded cut: padded) tensor."""
    boxes = piece_boxes(tuple(tensor.shape), how, shard, where=where)
    parts = [tensor[box.within(whole(tuple(tensor.shape)))] for box in boxes]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def join(pieces: Sequence[Tensor], how: Cut) -> Tensor:
    """The whole tensor from every rank's piece; the inverse of `cut`."""
    if how.axis is None or len(pieces) == 1:
        return pieces[0]
    extent, axis = pieces[0].shape[how.axis], how.axis
    ranges = section_ranges(extent, how.sections, where="piece")
    return torch.cat([p.narrow(axis, a, b - a) for a, b in ranges for p in pieces], dim=axis)


def missing_part(shape: Shape, boxes: Sequence[Box]) -> str | None:
    """Why `boxes` do not tile `shape` exactly, or None when they do."""
    for box in boxes:
        if len(box.shape) != len(shape) or box.overlap(whole(shape)) != box:
            return f"chunk {box.start}..{box.stop} lies outside {shape}"
    # In the order of rows a box can only overlap those that begin before it ends.
    ordered = sorted(boxes, key=lambda box: box.start)
    for i, box in enumerate(ordered):
        for other in ordered[i + 1 :]:
            if shape and other.start[0] >= box.stop[0]:
                break
            if box.overlap(other):
                return f"chunks {box.start}..{box.stop} and {other.start}..{other.stop} overlap"
    found, wanted = sum(box.numel for box in boxes), prod(shape)
    return None if found == wanted else f"{found} of {wanted} elements are stored"


def _span(shape: Shape, axis: int, start: int, stop: int) -> Box:
    low, high = [0] * len(shape), list(shape)
    low[axis], high[axis] = start, stop
    return Box(tuple(low), tuple(high))


def _divide(extent: int, shard: Shard, cut: Cut, *, where: str) -> int:
    if extent % shard.size:
        what = "columns" if cut.axis else "rows of each half" if cut == GATED else "rows"
        raise LayoutError(
            f"{where}: {extent} {what} do not divide by tp({shard.size}): "
            f"{extent} % {shard.size} = {extent % shard.size}"
        )
    return extent // shard.size
