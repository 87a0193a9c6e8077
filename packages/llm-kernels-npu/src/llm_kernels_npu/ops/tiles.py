"""Sizes of Triton tiles and what they need on chip: decided before any compiler runs.

A tile is a power of two. On an Ascend NPU the live values of a vector kernel share 192 KiB of
Unified Buffer; what does not fit is a compile error there. The costs below are AscendNPU-IR
1.2.0's own, read off its overflow messages: `tests/llm_kernels_npu/aot` compares them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Target = Literal["cuda", "npu"]

UNIFIED_BUFFER_BYTES = 192 * 1024
MAX_PROGRAMS = 65_535
"""Programs of one launch on an Ascend NPU, all grid axes multiplied."""

ROW_COST: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "rms_norm.forward": (14, 12),
        "rms_norm.backward": (26, 24),
        "rms_norm.weight": (14, 12),
        "add_rms_norm.forward": (18, 16),
        "add_rms_norm.backward": (26, 24),
        "add_rms_norm.weight": (14, 12),
        "layer_norm.forward": (27, 25),
        "layer_norm.backward": (32, 28),
        "layer_norm.weight": (18, 16),
        "cross_entropy.forward": (7, 7),
        "cross_entropy.backward": (21, 21),
        "adamw.forward": (12, 12),
        "silu.forward": (14, 12),
        "silu.backward": (22, 20),
        "gelu.forward": (22, 20),
        "gelu.backward": (26, 24),
        "gelu_tanh.forward": (16, 16),
        "gelu_tanh.backward": (30, 28),
    }
)
"""Bytes of Unified Buffer a feature of the tile takes, with 16-bit and with 32-bit tensors."""

ROPE_PAIR_BYTES = 72
"""Bytes of Unified Buffer a pair of rope takes: interleaved, half of that otherwise."""

_OTHER_CHIPS_NEED = 1.6
"""The compiler counts up to twice as much for a 950, of 248 KiB: that part of what a 910B needs."""

_MAX_TILE = 16_384
_ROPE_PAIRS = 2048
_WAVE: Mapping[Target, int] = MappingProxyType({"cuda": 264, "npu": 48})
"""Programs that fill a device: two a multiprocessor of an H100, one a vector core of a 910B."""


def row_tile(
    kernel: str, size: int, *, itemsize: int, target: Target, most: int = _MAX_TILE
) -> int:
    """Features a tile: all `size` of a row when they fit and are not over `most`, else fewer."""
    tile = min(power_of_two(size), most)
    if target == "cuda":
        return tile
    room = UNIFIED_BUFFER_BYTES / _OTHER_CHIPS_NEED
    while unified_buffer_bytes(kernel, tile, itemsize=itemsize) > room:
        tile //= 2
    return tile


def unified_buffer_bytes(kernel: str, tile: int, *, itemsize: int) -> int:
    """What a row kernel (a key of `ROW_COST`) needs for a tile of that many features."""
    narrow, wide = ROW_COST[kernel]
    return tile * (wide if itemsize > 2 else narrow)


def rope_tile(lanes: int, *, half: int, passing: int) -> int:
    """Rows of features a tile of rope, each of `half` pairs and `passing` single features."""
    width = max(power_of_two(half), power_of_two(passing) // 2)
    # Two at least: AscendNPU-IR 1.2.0 for the 950 crashes on one interleaved row.
    return max(2, min(power_of_two(lanes), _ROPE_PAIRS // width))


def tile_count(size: int, tile: int) -> int:
    """Tiles that cover `size`."""
    return -(-size // tile)


def warps(tile: int) -> int:
    """Warps of a CUDA program for that many elements: 16 an element's thread, 4 to 16 warps."""
    return min(16, max(4, tile // 512))


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()


def programs(tasks: int, *, others: int = 1) -> int:
    """Programs for `tasks` that each may take several, beside `others` on further grid axes."""
    return min(tasks, max(1, MAX_PROGRAMS // max(others, 1)))


def wave(tasks: int, *, target: Target, others: int = 1) -> int:
    """Programs where each leaves a partial result to be added up: few, but the device full."""
    return min(tasks, max(1, _WAVE[target] // max(others, 1)))
