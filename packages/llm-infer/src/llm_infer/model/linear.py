"""Linear layers whose rows come out the same, to the bit, however many there are.

A matrix product on a CPU takes another path, and rounds otherwise, for one row than for sixteen.
oneDNN's packed weights do not: its kernels add the products of a row in an order of their own
(measured, and held to by tests). They are also as fast for eight rows as for one, since reading the
weights is what takes the time. Where they are not, rows go through in tiles of one size.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS = 16
MAX_ROWS = 128
_EXPECTED_ROWS = 16


class Linear(Protocol):
    """x [T, K] to [T, N]."""

    def __call__(self, x: Tensor) -> Tensor:
        """The product, with the bias where there is one."""
        ...


class PackedLinear:
    """oneDNN's layout, made once; the tensor given may be freed afterwards."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


class TiledLinear:
    """Tiles of `TILE_ROWS` rows, the last filled up with zeros."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        missing = -x.shape[0] % TILE_ROWS
        tiles = F.pad(x, (0, 0, 0, missing)).split(TILE_ROWS)
        return torch.cat([F.linear(tile, self._weight, self._bias) for tile in tiles])[: len(x)]


class PlainLinear:
    """torch's own."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return F.linear(x, self._weight, self._bias)


MakeLinear = Callable[[Tensor, Tensor | None], Linear]


def maker(device: torch.device) -> MakeLinear:
    """The kind of linear layer for a device."""
    if device.type != "cpu":
        return PlainLinear
    return PackedLinear if torch.backends.mkldnn.is_available() else TiledLinear


def multiply(x_BMK: Tensor, w_BKN: Tensor) -> Tensor:
    """Batched x · w whose rows do not depend on M: padded to tiles and cut at `MAX_ROWS`."""
    rows = x_BMK.shape[1]
    if rows % TILE_ROWS:
        x_BMK = F.pad(x_BMK, (0, 0, 0, -rows % TILE_ROWS))
    if x_BMK.shape[1] <= MAX_ROWS:
        return torch.bmm(x_BMK, w_BKN)[:, :rows]
    parts = [torch.bmm(part, w_BKN) for part in x_BMK.split(MAX_ROWS, dim=1)]
    return torch.cat(parts, dim=1)[:, :rows]
