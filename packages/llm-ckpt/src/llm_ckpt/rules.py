"""Conversion rules: frozen values, each a pure pair merge (HF tensors → one) and split (back).

The law that lets a rank read only its slice: for every rule that `commutes` and every rank,
`merge(cut(part) for part in parts) == cut(merge(parts))`, where `part_cuts` says how each Hugging
Face part is cut. Rules know no process group; `{i}` in a name stands for the layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llm_ckpt.arch import Arch, Attention
from llm_ckpt.errors import ArchError
from llm_ckpt.layout import Cut, Shape


class Rule(Protocol):
    """What table, plan and execute know of a rule."""

    @property
    def mcore(self) -> str:
        """Canonical megatron-core name pattern."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Hugging Face name patterns, in the order of `merge`'s tensors."""
        ...

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """Shapes of the parts when the merged tensor has `shape`."""
        ...

    def part_cuts(self, cut: Cut) -> tuple[Cut, ...]:
        """How each part is cut when the merged tensor is cut by `cut`."""
        ...

    def commutes(self, size: int, arch: Arch) -> bool:
        """Whether the law above holds for `size` ranks; if not, merge first and cut then."""
        ...

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """One megatron-core tensor (or one rank's piece of it) from the parts (pieces)."""
        ...

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """The inverse of `merge`."""
        ...


@dataclass(frozen=True, slots=True)
class Same:
    """One tensor, the same on both sides."""

    mcore: str
    hf: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """The same shape."""
        del arch
        return (shape,)

    def part_cuts(self, cut: Cut) -> tuple[Cut, ...]:
        """The same cut."""
        return (cut,)

    def commutes(self, size: int, arch: Arch) -> bool:
        """Always."""
        del size, arch
        return True

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """The tensor itself."""
        del arch
        return parts[0]

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """The tensor itself."""
        del arch
        return (tensor,)


@dataclass(frozen=True, slots=True)
class Qkv:
    """Query, key and value projections ⇄ rows `[q … q k v]` for each query group in turn.

    Works for weights and biases alike: everything after axis 0 is carried along. Megatron-core
    splits the fused rows by group (megatron/core/transformer/attention.py).
    """

    mcore: str
    q: str
    k: str
    v: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of q, k and v."""
        return (self.q, self.k, self.v)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """`heads * head_dim` rows of q, `query_groups * head_dim` of k and v."""
        attention = _attention(arch)
        q, kv = (n * attention.head_dim for n in (attention.heads, attention.query_groups))
        return ((q, *shape[1:]), (kv, *shape[1:]), (kv, *shape[1:]))

    def part_cuts(self, cut: Cut) -> tuple[Cut, ...]:
        """Each by rows: a rank holds whole groups."""
        return (cut, cut, cut)

    def commutes(self, size: int, arch: Arch) -> bool:
        """When a rank holds whole query groups."""
        return _attention(arch).query_groups % size == 0

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Interleave by query group."""
        dim, rest = _attention(arch).head_dim, parts[0].shape[1:]
        groups = parts[1].shape[0] // dim
        by_group = [part.reshape(groups, -1, *rest) for part in parts]
        return torch.cat(by_group, dim=1).reshape(-1, *rest)

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Undo the interleaving."""
        attention, rest = _attention(arch), tensor.shape[1:]
        dim, per_group = attention.head_dim, attention.heads // attention.query_groups
        by_group = tensor.reshape(-1, (per_group + 2) * dim, *rest)
        parts = torch.split(by_group, [per_group * dim, dim, dim], dim=1)
        return tuple(part.reshape(-1, *rest) for part in parts)


@dataclass(frozen=True, slots=True)
class Glu:
    """Gate and up projections ⇄ rows `[gate; up]` (on a rank: of its own halves)."""

    mcore: str
    gate: str
    up: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of gate and up."""
        return (self.gate, self.up)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """Half the rows each."""
        del arch
        half = (shape[0] // 2, *shape[1:])
        return (half, half)

    def part_cuts(self, cut: Cut) -> tuple[Cut, ...]:
        """Each half by rows."""
        half = Cut.ROWS if cut is Cut.GATED else cut
        return (half, half)

    def commutes(self, size: int, arch: Arch) -> bool:
        """Always."""
        del size, arch
        return True

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Stack gate on up."""
        del arch
        return torch.cat(list(parts))

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Halve."""
        del arch
        gate, up = tensor.chunk(2)
        return (gate, up)


def _attention(arch: Arch) -> Attention:
    if arch.attention is None:
        raise ArchError("arch: a Qkv rule needs attention, found null")
    return arch.attention
