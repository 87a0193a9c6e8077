"""NF4: weights in four bits, and their scales in eight (QLoRA, https://arxiv.org/abs/2305.14314).

Blocks of 64 weights, each divided by its largest magnitude, become indices into 16 values; the
magnitudes, less their mean, become in blocks of 256 indices into 256 values. The tables and the
order of everything are those of bitsandbytes, so that the same bits mean the same weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

BLOCK, SCALES_BLOCK = 64, 256
# Weights that are quantised or restored at a time, which bounds what that needs beside both forms.
_AT_A_TIME = BLOCK << 14
# Section 3 and appendix E of the paper: quantiles of a normal distribution, 0 among them.
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_DECADES = 7


class Nf4Error(ValueError):
    """A weight that NF4 cannot hold."""


@dataclass(frozen=True, slots=True)
class Scales:
    """The largest magnitude of every block; `codes` is None where they are kept as they are.

    Quantised: codes uint8 [blocks], `values` the largest of each 256 of them, `mean` what was taken
    off before. Otherwise `values` [blocks].
    """

    values: torch.Tensor
    codes: torch.Tensor | None
    mean: torch.Tensor | None

    def restored(self) -> torch.Tensor:
        """fp32 [blocks]."""
        if self.codes is None or self.mean is None:
            return self.values
        found = dynamic_map(self.codes.device)[self.codes.long()]
        wide = self.values.repeat_interleave(SCALES_BLOCK)[: len(found)]
        return found * wide + self.mean

    @property
    def num_bytes(self) -> int:
        """Bytes that they take."""
        kept = (one for one in (self.values, self.codes, self.mean) if one is not None)
        return sum(one.numel() * one.element_size() for one in kept)


class Nf4Tensor(torch.Tensor):
    """A frozen weight that is kept in NF4 and takes part in products as if it were not.

    What autograd saves of it for backward is this tensor: only a product makes the weight, for as
    long as it takes.
    """

    packed: torch.Tensor
    scales: Scales
    is_transposed: bool

    @staticmethod
    def __new__(
        cls: "type[Nf4Tensor]",
        packed: torch.Tensor,
        scales: Scales,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> "Nf4Tensor":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, torch.Size(shape), dtype=dtype, device=packed.device, requires_grad=False
        )
        made.packed, made.scales, made.is_transposed = packed, scales, False
        return made

    # Operations are taken below autograd, where they are few.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Lazy where the weight stays what it is, of the restored weight otherwise."""
        if func in _LAZY:
            return _LAZY[func](args[0])
        if func._schema.is_mutable:
            raise TypeError(f"{func}: an NF4 weight is frozen")
        plain = tree_map_only(cls, cls.restored, (args, dict(kwargs or {})))
        return func(*plain[0], **plain[1])

    def restored(self) -> torch.Tensor:
        """The weight, in this tensor's dtype."""
        shape = self.shape[::-1] if self.is_transposed else self.shape
        found = dequantize(self.packed, self.scales, shape, self.dtype)
        return found.t() if self.is_transposed else found

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return self.packed.numel() + self.scales.num_bytes

    def _same(self, *, is_turned: bool) -> "Nf4Tensor":
        shape = self.shape[::-1] if is_turned else self.shape
        made = Nf4Tensor(self.packed, self.scales, shape, self.dtype)
        made.is_transposed = self.is_transposed != is_turned
        return made


def quantize(weight: torch.Tensor, *, is_double: bool) -> Nf4Tensor:
    """A matrix in NF4; `is_double` quantises its scales too. Any size: the last block is filled.

    Raises Nf4Error where entries are NaN or infinite: one would make its whole block so, or with
    `is_double`, whose scales have one mean, the whole matrix.
    """
    flat = weight.detach().reshape(-1)
    blocks = -(-len(flat) // BLOCK)
    # First what stays: memory that is let go of behind it is used again.
    packed = torch.empty(blocks * BLOCK // 2, dtype=torch.uint8, device=weight.device)
    largest = torch.empty(blocks, device=weight.device)
    for part, kept, scale in zip(
        flat.split(_AT_A_TIME),
        packed.split(_AT_A_TIME // 2),
        largest.split(_AT_A_TIME // BLOCK),
        strict=True,
    ):
        _pack(part, kept, scale)
    if not largest.isfinite().all():
        lost = len(flat) - int(flat.isfinite().sum())
        raise Nf4Error(
            f"{lost} of its {len(flat)} entries are NaN or infinite; want finite ones, or "
            "lora.quantize=null"
        )
    scales = _quantized_scales(largest) if is_double else Scales(largest, None, None)
    return Nf4Tensor(packed, scales, weight.shape, weight.dtype)


def dequantize(
    packed: torch.Tensor, scales: Scales, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """The inverse, as near as it is."""
    size = torch.Size(shape)
    out = torch.empty(size.numel(), dtype=dtype, device=packed.device)
    largest = scales.restored()[:, None]
    for part, kept, scale in zip(
        out.split(_AT_A_TIME),
        packed.split(_AT_A_TIME // 2),
        largest.split(_AT_A_TIME // BLOCK),
        strict=True,
    ):
        found = F.embedding(kept.int(), _pairs(packed.device)).view(-1, BLOCK) * scale
        part.copy_(found.view(-1)[: len(part)])
    return out.view(size)


@cache
def dynamic_map(device: torch.device) -> torch.Tensor:
    """256 values in [-1, 1], in seven decades, each with more (arXiv 2110.02861, section 2.2)."""
    found = [0.0, 1.0]
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1.0, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - _DECADES + 1)
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(found), device=device)


@cache
def _values(device: torch.device) -> torch.Tensor:
    return torch.tensor(VALUES, device=device)


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """[256, 2]: both values of every byte."""
    values = _values(device)
    return torch.stack([values.repeat_interleave(len(values)), values.repeat(len(values))], 1)


def _pack(weights: torch.Tensor, packed: torch.Tensor, largest: torch.Tensor) -> None:
    """[N] → two codes a byte, uint8 [N / 2], and the largest magnitude of every block, fp32."""
    filled = F.pad(weights.float(), (0, -len(weights) % BLOCK)).view(-1, BLOCK)
    torch.amax(filled.abs(), 1, out=largest)
    normed = filled / torch.where(largest > 0, largest, 1.0)[:, None]
    codes = _nearest(normed.flatten(), _values(weights.device)).to(torch.uint8).view(-1, 2)
    torch.bitwise_or(codes[:, 0] << 4, codes[:, 1], out=packed)


def _nearest(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Index of the nearest value of a sorted table."""
    return torch.bucketize(x, (table[:-1] + table[1:]) / 2)


def _quantized_scales(largest: torch.Tensor) -> Scales:
    # In fp64: the sum of many large scales is no fp32.
    mean = largest.double().mean().float()
    left = largest - mean
    filled = F.pad(left, (0, -len(left) % SCALES_BLOCK)).view(-1, SCALES_BLOCK)
    wide = filled.abs().amax(1)
    normed = filled / torch.where(wide > 0, wide, 1.0)[:, None]
    codes = _nearest(normed.flatten()[: len(left)], dynamic_map(largest.device))
    return Scales(wide, codes.to(torch.uint8), mean)


_LAZY: Mapping[Any, Callable[[Nf4Tensor], Nf4Tensor]] = {
    torch.ops.aten.detach.default: lambda one: one._same(is_turned=False),
    torch.ops.aten.alias.default: lambda one: one._same(is_turned=False),
    torch.ops.aten.t.default: lambda one: one._same(is_turned=True),
}
