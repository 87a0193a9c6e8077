"""Tiles of the recurrences' Triton kernels: a table for CUDA, on-chip memory on an NPU."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llm_kernels_npu.ops.tiles import UNIFIED_BUFFER_BYTES, Target, power_of_two

MAX_DIM = 256
"""Features of a key, or of a value, that tiles reach to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrenceTile:
    """Tokens of a chunk, and how many features of key and value a tile holds."""

    chunk: int
    key: int
    value: int

    def constants(self) -> dict[str, int]:
        """The tile as kernels are compiled for it."""
        return {"CHUNK": self.chunk, "KEY": self.key, "VALUE": self.value}


_CUDA_TILES = ((64, 64, 32), (128, 32, 32), (256, 16, 16))
"""Features of a key up to which an entry is for, tokens of a chunk, features of a value.

64 tokens of 128 features take 176 KiB of shared memory, an A100 has 163.
"""

RECURRENCE_COST: Mapping[str, tuple[tuple[float, float, float], ...]] = MappingProxyType(
    {
        "solve_kernel": ((289, 4.5, 0),),
        "gradient_kernel": ((142, 29.5, 0), (0, 0, 24)),
    }
)
"""Bytes of Unified Buffer by kernel and part of it, whose memory is used again by the next part.

Of CHUNK squared, of CHUNK * KEY and of KEY * VALUE, by AscendNPU-IR 1.2.0's count for a 910B, with
16-bit and with 32-bit tensors. The other kernels need less at every tile. mamba2_scan, which has
no solve_kernel, takes the tiles of gated_delta_rule.
"""

_OTHER_PLANS_NEED = 1.25
"""Room left, as a part of what a 910B needs: the compiler plans otherwise for other chips."""
_NPU_CHUNKS = (64, 32, 16)
_NPU_VALUES = (32, 16)


def recurrence_tile(tokens: int, key_dim: int, value_dim: int, *, target: Target) -> RecurrenceTile:
    """The tile for keys and values of up to `MAX_DIM` features; 16 at least for a product."""
    key = max(16, power_of_two(key_dim))
    if target == "npu":
        chunk, value = _npu_sizes(key)
    else:
        _, chunk, value = next(entry for entry in _CUDA_TILES if key <= entry[0])
    return RecurrenceTile(
        chunk=min(chunk, max(16, power_of_two(tokens))),
        key=key,
        value=min(value, max(16, power_of_two(value_dim))),
    )


def unified_buffer_bytes(kernel: str, tile: RecurrenceTile) -> float:
    """What a kernel of `RECURRENCE_COST` needs for a tile."""
    sizes = (tile.chunk**2, tile.chunk * tile.key, tile.key * tile.value)
    return max(
        sum(cost * size for cost, size in zip(part, sizes, strict=True))
        for part in RECURRENCE_COST[kernel]
    )


@functools.cache
def _npu_sizes(key: int) -> tuple[int, int]:
    """The longest chunk, then the most features of a value, that fit beside a key's."""
    need = 0.0
    for chunk in _NPU_CHUNKS:
        for value in _NPU_VALUES:
            tile = RecurrenceTile(chunk=chunk, key=key, value=value)
            need = max(unified_buffer_bytes(kernel, tile) for kernel in RECURRENCE_COST)
            if need * _OTHER_PLANS_NEED <= UNIFIED_BUFFER_BYTES:
                return chunk, value
    raise ValueError(
        f"keys of {key} features take {need:.0f} bytes of Unified Buffer in the smallest tile, "
        f"{UNIFIED_BUFFER_BYTES} are there"
    )
