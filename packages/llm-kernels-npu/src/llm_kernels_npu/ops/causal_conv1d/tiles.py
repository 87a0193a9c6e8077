"""Tiles of causal_conv1d's Triton kernels: tokens by channels."""

from dataclasses import dataclass

from llm_kernels_npu.ops.tiles import Target, power_of_two

MAX_WIDTH = 8
"""Taps the kernels are made for: they are unrolled."""

UNIFIED_BUFFER_950_BYTES = 248 * 1024
TAP_BYTES = 19
"""Bytes of Unified Buffer that a tap of an element takes on a 950, by AscendNPU-IR 1.2.0's count.

A 910B's compiler uses the taps' memory again, and needs 21 bytes an element in all.
"""

_ELEMENTS = 4096
_COLUMNS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvTile:
    """Tokens and channels of a tile."""

    rows: int
    columns: int

    def constants(self) -> dict[str, int]:
        """The tile as kernels are compiled for it."""
        return {"ROWS": self.rows, "COLUMNS": self.columns}


def conv_tile(tokens: int, channels: int, *, width: int, target: Target) -> ConvTile:
    """The tile for that many tokens a sequence (few rows for few of them) and taps."""
    elements = _ELEMENTS
    while target == "npu" and elements * TAP_BYTES * max(width, 4) > UNIFIED_BUFFER_950_BYTES:
        elements //= 2
    columns = min(power_of_two(channels), _COLUMNS)
    return ConvTile(rows=min(power_of_two(tokens), elements // columns), columns=columns)
