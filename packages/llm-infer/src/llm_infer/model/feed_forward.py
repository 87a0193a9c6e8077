"""Dense feed-forwards."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.parameters import Parameters
from llm_infer.model.rowwise import by_row

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square(),
    }
)


class Facts(Protocol):
    """What arch.json's `mlp` and `moe` both say of a feed-forward."""

    @property
    def activation(self) -> str:
        """A name of `ACTIVATIONS`."""
        ...

    @property
    def gated(self) -> bool:
        """Whether the first projection gives a gate, then what it gates."""
        ...

    @property
    def clamp(self) -> float | None:
        """The gate is at most, the other at most and at least minus, this."""
        ...

    @property
    def glu_offset(self) -> float:
        """Added to what is gated."""
        ...


class FeedForward:
    """fc1, activation (gated or not), fc2, under the name `at`."""

    def __init__(
        self,
        facts: Facts,
        parameters: Parameters,
        at: str,
        *,
        sums: bool = True,
    ) -> None:
        """Without `sums` the caller sums what the ranks give."""
        self._facts = facts
        self._second = parameters.row_parallel(f"{at}.linear_fc2", sums=sums)
        is_plain = facts.gated and facts.clamp is None and facts.glu_offset == 0.0
        self._is_swiglu = is_plain and facts.activation == "silu"
        read = parameters.swiglu if self._is_swiglu else parameters.linear
        self._first = read(f"{at}.linear_fc1")

    def __call__(self, x_TH: Tensor) -> Tensor:
        """[T, H] from [T, H]."""
        x = self._first(x_TH)
        return self._second(x if self._is_swiglu else self._activated(x))

    def _activated(self, x: Tensor) -> Tensor:
        facts, activation = self._facts, ACTIVATIONS[self._facts.activation]
        if not facts.gated:
            return by_row(activation, x)
        gate, up = x.chunk(2, dim=-1)
        if facts.clamp is not None:
            gate, up = gate.clamp(max=facts.clamp), up.clamp(-facts.clamp, facts.clamp)
        return by_row(activation, gate) * (up + facts.glu_offset)
