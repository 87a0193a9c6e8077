"""Tensors stored in parts: which file bytes fill which box of each parameter."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_ckpt.blocks import Param
from llm_ckpt.errors import CheckpointError, FormatError
from llm_ckpt.formats.slab import Files, Slab, Tile
from llm_ckpt.layout import Box, missing_part
from llm_ckpt.table import check_names


@dataclass(frozen=True, slots=True)
class Tiled:
    """Every parameter of a Megatron checkpoint as tiles, checked to cover it exactly."""

    tiles: Mapping[str, tuple[Tile, ...]]
    dtypes: Mapping[str, torch.dtype]

    def read(self, files: Files, name: str, box: Box, out: Tensor) -> None:
        """Copy `box` of a parameter into `out`."""
        for tile in self.tiles[name]:
            part = box.overlap(tile.box)
            if part is not None:
                local = Box(
                    tuple(a - o for a, o in zip(part.start, tile.box.start, strict=True)),
                    tuple(b - o for b, o in zip(part.stop, tile.box.start, strict=True)),
                )
                slab = tile.slab()
                if slab.dtype != out.dtype:
                    raise FormatError(f"{slab.path}: {name} is {slab.dtype}, want {out.dtype}")
                target = out[part.within(box)]
                if tile.column is None:
                    files.read(slab, local, target)
                else:
                    _read_transposed(files, slab, local, tile.column, target)


def check_tiles(
    found: Mapping[str, list[Tile]],
    dtypes: Mapping[str, torch.dtype],
    params: Iterable[Param],
    *,
    where: str,
) -> Tiled:
    """Refuse unknown and missing names, gaps and overlaps."""
    shapes = {param.name: param.shape for param in params}
    missing, extra = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
    check_names(missing, extra, known=shapes, where=where)
    for name, shape in shapes.items():
        if reason := missing_part(shape, [tile.box for tile in found[name]]):
            raise CheckpointError(f"{where}: {name} {list(shape)}: {reason}")
    return Tiled({name: tuple(tiles) for name, tiles in found.items()}, dict(dtypes))


def _read_transposed(files: Files, slab: Slab, local: Box, column: int, out: Tensor) -> None:
    (top, left), (bottom, right) = local.start, local.stop
    turned = Box((left, column + top), (right, column + bottom))
    buffer = torch.empty(turned.shape, dtype=slab.dtype)
    files.read(slab, turned, buffer)
    out.copy_(buffer.T)
