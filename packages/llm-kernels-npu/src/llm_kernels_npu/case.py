"""One call of an operator to compare or to time: its tensors and its options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Build = Callable[[torch.Generator], tuple[Tensor, ...]]
Option = float | int | bool | str | tuple[int, ...] | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of an operator: how to make its tensors, and its options.

    Tensors are made in float32 on the CPU, so that every device and dtype sees the same values.
    """

    name: str
    build: Build
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    keywords: tuple[str, ...] = ()
    """Names under which the last of the tensors are passed; the others go by position."""
    differentiable: int = 1
    """How many of the leading tensors take gradients; 0 for an operator that has none."""
    mutated: tuple[int, ...] = ()
    """Which tensors the operator writes to: they are compared after the call."""
    stay_float32: frozenset[int] = frozenset()
    """Which tensors are float32 whatever dtype is compared (master weights, tables)."""
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSize:
    """The sizes of one layer of a real model."""

    tokens: int
    hidden: int
    vocab: int

    @property
    def heads(self) -> int:
        """Query heads of 128 features."""
        return self.hidden // 128

    @property
    def groups(self) -> int:
        """Key heads: a quarter of the query heads."""
        return max(1, self.heads // 4)


def normal(*shape: int, scale: float = 1.0) -> Build:
    """One tensor of normal numbers."""
    return lambda seed: (torch.randn(*shape, generator=seed) * scale,)


def label(shape: tuple[int, ...], **options: object) -> str:
    """`3x7x64 eps=1e-06`; a scale of 1 goes without saying."""
    shown = [f"{key}={value}" for key, value in options.items() if (key, value) != ("scale", 1.0)]
    return " ".join(("x".join(map(str, shape)), *shown))
