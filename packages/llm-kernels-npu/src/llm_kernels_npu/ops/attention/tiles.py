"""Tiles of attention's Triton kernels: a table by device, part and width of a head."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llm_kernels_npu.ops.tiles import Target, power_of_two

MAX_DIM = 256
"""Features a head that the table reaches to."""

Part = Literal["forward", "queries", "keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTile:
    """Queries and keys of a tile, and the warps of its CUDA program."""

    rows: int
    keys: int
    warps: int

    def constants(self, *, dim: int, value_dim: int) -> dict[str, int]:
        """The tile as kernels are compiled for it."""
        return {
            "ROWS": self.rows,
            "KEYS": self.keys,
            "DIM": padded(dim),
            "VALUE_DIM": padded(value_dim),
        }


def padded(dim: int) -> int:
    """Features as a tile holds them: a power of two, 16 at least for a product."""
    return max(16, power_of_two(dim))


def _tile(rows: int, keys: int, warps: int) -> AttentionTile:
    return AttentionTile(rows=rows, keys=keys, warps=warps)


_CUDA_BACKWARD = (
    (128, _tile(64, 64, 4)),
    (256, _tile(64, 64, 8)),
    (512, _tile(32, 32, 4)),
    (1024, _tile(16, 16, 4)),
)
_TILES: Mapping[tuple[Target, Part], tuple[tuple[int, AttentionTile], ...]] = MappingProxyType(
    {
        ("cuda", "forward"): (
            (128, _tile(128, 64, 4)),
            (256, _tile(128, 64, 8)),
            (512, _tile(64, 32, 4)),
            (1024, _tile(32, 16, 4)),
        ),
        ("cuda", "queries"): _CUDA_BACKWARD,
        ("cuda", "keys"): _CUDA_BACKWARD,
        ("npu", "forward"): (
            (256, _tile(64, 64, 4)),
            (512, _tile(32, 64, 4)),
            (1024, _tile(16, 32, 4)),
        ),
        ("npu", "queries"): (
            (256, _tile(64, 64, 4)),
            (512, _tile(32, 32, 4)),
            (1024, _tile(16, 16, 4)),
        ),
        # 64 by 64 scores take 459 KiB of Unified Buffer here, by AscendNPU-IR's count.
        ("npu", "keys"): (
            (512, _tile(32, 32, 4)),
            (1024, _tile(16, 16, 4)),
        ),
    }
)
"""First the bytes of a head's features up to which a tile is for."""


def attention_tile(part: Part, dim: int, *, itemsize: int, target: Target) -> AttentionTile:
    """The tile for heads of `dim` features, `MAX_DIM` at most."""
    width_bytes = padded(dim) * itemsize
    return next(tile for most, tile in _TILES[target, part] if width_bytes <= most)
