"""Rules of gated feed-forwards."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_ckpt.arch import Arch
from llm_ckpt.layout import GATED, ROWS, Cut, Shape


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

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """Each half by rows."""
        del arch
        half = ROWS if cut == GATED else cut
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


@dataclass(frozen=True, slots=True)
class InterleavedGlu:
    """Rows `[gate_0 up_0 gate_1 up_1 …]` of one tensor ⇄ rows `[gate; up]` (gpt-oss)."""

    mcore: str
    gate_up: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one name."""
        return (self.gate_up,)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """The same shape."""
        del arch
        return (shape,)

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """A run of pairs."""
        del cut, arch
        return (ROWS,)

    def commutes(self, size: int, arch: Arch) -> bool:
        """Always."""
        del size, arch
        return True

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Even rows, then odd rows."""
        del arch
        return torch.cat([parts[0][0::2], parts[0][1::2]])

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Rows of both halves in turn."""
        del arch
        gate, up = tensor.chunk(2)
        return (torch.stack([gate, up], dim=1).reshape(tensor.shape),)
