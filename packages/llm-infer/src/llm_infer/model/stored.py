"""Weights that are read otherwise than by a linear layer: tables of rows, and matrices."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Arrange = Callable[[Tensor], Tensor]
"""Views of a weight [N, K] in another shape or order, or a part of it."""


class Table(Protocol):
    """Rows [V, H] that are looked up."""

    def __len__(self) -> int:
        """V."""
        ...

    def __call__(self, tokens_T: Tensor) -> Tensor:
        """Rows [T, H] of numbers [T], in the model's dtype."""
        ...


class Matrices(Protocol):
    """A weight [N, K] that products other than `Linear` take."""

    def arranged(self, arrange: Arrange) -> Callable[[], Tensor]:
        """What gives the weight arranged so, in the model's dtype, at each use."""
        ...


class PlainTable:
    """A `Table` as it was read, whose rows become numbers of the model's type when looked up."""

    def __init__(self, rows_VH: Tensor, dtype: torch.dtype) -> None:
        self._rows_VH, self._dtype = rows_VH, dtype

    def __len__(self) -> int:
        return len(self._rows_VH)

    def __call__(self, tokens_T: Tensor) -> Tensor:
        """See `Table`."""
        return F.embedding(tokens_T, self._rows_VH).to(self._dtype)


class PlainMatrices:
    """`Matrices` as they were read."""

    def __init__(self, weight_NK: Tensor) -> None:
        self._weight_NK = weight_NK

    def arranged(self, arrange: Arrange) -> Callable[[], Tensor]:
        """See `Matrices`."""
        weight = arrange(self._weight_NK).contiguous()
        return lambda: weight
