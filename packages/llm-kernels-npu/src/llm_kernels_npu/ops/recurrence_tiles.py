"""Tiles of the recurrences' Triton kernels: a table by device and width of a key."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llm_kernels_npu.ops.tiles import Target, power_of_two

MAX_DIM = 256
"""Features of a key, or of a value, that the table reaches to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrenceTile:
    """Tokens of a chunk, and how many features of key and value a tile holds."""

    chunk: int
    key: int
    value: int

    def constants(self) -> dict[str, int]:
        """The tile as kernels are compiled for it."""
        return {"CHUNK": self.chunk, "KEY": self.key, "VALUE": self.value}


_TILES: Mapping[Target, tuple[tuple[int, int, int], ...]] = MappingProxyType(
    {
        # 64 tokens of 128 features take 176 KiB of shared memory, an A100 has 163.
        "cuda": ((64, 64, 32), (128, 32, 32), (256, 16, 16)),
        # 32 tokens take 277 KiB of Unified Buffer in gated_delta_rule, by AscendNPU-IR's count.
        "npu": ((128, 16, 32), (256, 16, 16)),
    }
)
"""Features of a key up to which an entry is for, tokens of a chunk, features of a value."""


def recurrence_tile(tokens: int, key_dim: int, value_dim: int, *, target: Target) -> RecurrenceTile:
    """The tile for keys and values of up to `MAX_DIM` features; 16 at least for a product."""
    key = max(16, power_of_two(key_dim))
    _, chunk, value = next(entry for entry in _TILES[target] if key <= entry[0])
    return RecurrenceTile(
        chunk=min(chunk, max(16, power_of_two(tokens))),
        key=key,
        value=min(value, max(16, power_of_two(value_dim))),
    )
