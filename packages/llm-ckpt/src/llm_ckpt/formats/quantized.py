"""Quantised Hugging Face tensors, dequantised box by box as they are read.

FP8 (DeepSeek-V3): `X.weight` in float8 with `X.weight_scale_inv`, one fp32 factor a block of
`weight_block_size`. MXFP4 (gpt-oss; OCP Microscaling v1.0): `X_blocks`, two 4-bit values a byte,
the low half first, and `X_scales`, one power of two for 32 values; the stored matrix is the
transpose of the one the model has. Nothing dequantised is kept: no copy on disk, and in memory the
box that was asked for and one block of it more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from llm_ckpt.errors import ArchError, FormatError
from llm_ckpt.formats.slab import Files, Slab
from llm_ckpt.layout import Box, Shape, whole

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)
# E2M1: sign, two bits of exponent, one of mantissa.
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_PER_BYTE = 2
FP4_PER_SCALE = 32
E8M0_BIAS = 127
_BLOCK_BYTES = 32 << 20  # of fp32 values at a time


class Stored(Protocol):
    """A tensor of a folder, however it is stored."""

    @property
    def path(self) -> Path:
        """Its file."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it is read as."""
        ...

    @property
    def shape(self) -> Shape:
        """The shape it is read as."""
        ...

    def entry(self, index: int) -> "Stored":
        """Entry `index` of axis 0."""
        ...

    def read(self, files: Files, box: Box, out: Tensor) -> None:
        """Copy a box of it into `out`, which has the box's shape and any strides."""
        ...


@dataclass(frozen=True, slots=True)
class Fp8:
    """A matrix in float8 and the factors of its blocks (one factor: of all of it)."""

    values: Slab
    scales: Slab
    block: Shape
    dtype: torch.dtype

    @property
    def path(self) -> Path:
        """The values' file."""
        return self.values.path

    @property
    def shape(self) -> Shape:
        """The values'."""
        return self.values.shape

    def entry(self, index: int) -> "Fp8":
        """One matrix of a stack."""
        return replace(self, values=self.values.entry(index), scales=self.scales.entry(index))

    def read(self, files: Files, box: Box, out: Tensor) -> None:
        """Value times factor in fp32, then rounded once."""
        scales = _whole(files, self.scales).float()
        rows = torch.arange(box.start[0], box.stop[0]) // self.block[0]
        columns = torch.arange(box.start[1], box.stop[1]) // self.block[1]

        def block(start: int, stop: int, part: Box) -> Tensor:
            factors = scales[rows[start:stop]][:, columns]
            return _part(files, self.values, part).float().mul_(factors)

        _by_rows(box, out, block)


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Blocks [..., rows, columns/32, 16] and scales [..., rows, columns/32]; read transposed."""

    blocks: Slab
    scales: Slab
    dtype: torch.dtype

    @property
    def path(self) -> Path:
        """The blocks' file."""
        return self.blocks.path

    @property
    def shape(self) -> Shape:
        """`[..., columns, rows]`."""
        *lead, rows, groups = self.scales.shape
        return (*lead, groups * FP4_PER_SCALE, rows)

    def entry(self, index: int) -> "Mxfp4":
        """One matrix of a stack."""
        return replace(self, blocks=self.blocks.entry(index), scales=self.scales.entry(index))

    def read(self, files: Files, box: Box, out: Tensor) -> None:
        """Value times 2^(scale - 127), exact in bf16 unless it leaves the range."""
        first, last = box.start[0] // FP4_PER_SCALE, -(-box.stop[0] // FP4_PER_SCALE)
        low = box.start[0] - first * FP4_PER_SCALE
        kept = slice(low, low + box.shape[0])
        flipped = Box(box.start[::-1], box.stop[::-1])

        def block(start: int, stop: int, part: Box) -> Tensor:
            del start, stop
            rows = (part.start[0], part.stop[0])
            size = FP4_PER_SCALE // FP4_PER_BYTE
            whole_blocks = Box((rows[0], first, 0), (rows[1], last, size))
            packed = _part(files, self.blocks, whole_blocks)
            scales = _part(files, self.scales, Box((rows[0], first), (rows[1], last)))
            exponents = scales.int().sub_(E8M0_BIAS)[..., None]
            return torch.ldexp(_unpack(packed), exponents).flatten(1)[:, kept]

        _by_rows(flipped, out.T, block)


def dequantized(
    stored: Mapping[str, Slab], config: Mapping[str, Any], *, where: str
) -> dict[str, Stored]:
    """The folder's tensors under the names of the model; `config` is its config.json.

    A float8 tensor without its factors, or factors without theirs, is an error.
    """
    facts = cast("Mapping[str, Any]", config.get("quantization_config") or {})
    dtype = _model_dtype(config, where=where)
    block = tuple(facts.get("weight_block_size") or DEFAULT_BLOCK)
    found: dict[str, Stored] = {}
    for name, slab in stored.items():
        if name.endswith(SCALE_SUFFIX):
            _need(stored, name.removesuffix(SCALE_SUFFIX), name, where=where)
        elif name.endswith("_scales") and name.removesuffix("_scales") + "_blocks" in stored:
            continue
        elif name.endswith("_blocks"):
            scales = _need(stored, name.removesuffix("blocks") + "scales", name, where=where)
            found[name.removesuffix("_blocks")] = _mxfp4(slab, scales, dtype, name, where=where)
        elif slab.dtype in FP8_DTYPES:
            scales = _need(stored, name + SCALE_SUFFIX, name, where=where)
            found[name] = _fp8(slab, scales, block, dtype, name, where=where)
        else:
            found[name] = slab
    return found


def _model_dtype(config: Mapping[str, Any], *, where: str) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ArchError(f"{where}: dtype {name!r}, want a torch dtype like bfloat16")
    return dtype


def _need(stored: Mapping[str, Slab], name: str, partner: str, *, where: str) -> Slab:
    if name not in stored:
        raise FormatError(
            f"{where}: {partner} is stored without {name}; both are needed to read it"
        )
    return stored[name]


def _fp8(
    values: Slab, scales: Slab, block: Shape, dtype: torch.dtype, name: str, *, where: str
) -> Fp8:
    rows, columns = values.shape[-2:]
    if prod(scales.shape) == 1:
        scales, block = replace(scales, shape=(1, 1)), (rows, columns)
    wanted = (*values.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    if scales.shape != wanted:
        raise FormatError(
            f"{where}: {name}{SCALE_SUFFIX} has shape {list(scales.shape)}, want {list(wanted)} "
            f"for {list(values.shape)} in blocks of {list(block)}"
        )
    return Fp8(values, scales, block, dtype)


def _mxfp4(blocks: Slab, scales: Slab, dtype: torch.dtype, name: str, *, where: str) -> Mxfp4:
    wanted = (*scales.shape, FP4_PER_SCALE // FP4_PER_BYTE)
    if blocks.shape != wanted or {blocks.dtype, scales.dtype} != {torch.uint8}:
        raise FormatError(
            f"{where}: {name} is {blocks.dtype} {list(blocks.shape)}, want uint8 {list(wanted)}"
        )
    return Mxfp4(blocks, scales, dtype)


def _by_rows(box: Box, out: Tensor, block: Callable[[int, int, Box], Tensor]) -> None:
    """Fill `out` with `block(start, stop, part)` for runs of rows of `box`, from its first on."""
    row_bytes = max(1, prod(box.shape[1:]) * torch.float32.itemsize)
    height = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, box.shape[0], height):
        stop = min(start + height, box.shape[0])
        low = (box.start[0] + start, *box.start[1:])
        out[start:stop] = block(start, stop, Box(low, (box.start[0] + stop, *box.stop[1:])))


def _unpack(packed: Tensor) -> Tensor:
    """Bytes [..., n] → values [..., 2n] in fp32, the low half of each byte first."""
    table = torch.tensor([*FP4_VALUES, *(-value for value in FP4_VALUES)])
    halves = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    return table[halves.int()]


def _part(files: Files, slab: Slab, box: Box) -> Tensor:
    out = torch.empty(box.shape, dtype=slab.dtype)
    files.read(slab, box, out)
    return out


def _whole(files: Files, slab: Slab) -> Tensor:
    return _part(files, slab, whole(slab.shape))
