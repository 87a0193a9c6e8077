"""Linear layers whose rows come out the same, to the bit, however many there are.

A matrix product on a CPU takes another path, and rounds otherwise, for one row than for sixteen.
Weights packed by oneDNN do not, nor do large ones packed by MKL, which reads them faster: their
kernels add the products of a row in one order (measured, and held to by tests). Eight rows take
little longer than one, since reading the weights is what takes the time. Where neither library is,
rows go through in tiles of one size.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS = 16
MAX_ROWS = 128
_EXPECTED_ROWS = 16
# With one output oneDNN takes another path, too.
_MIN_OUTPUTS = 8
# In a batch of products rows differ with fewer outputs, by their place in a tile.
_MIN_BATCH_OUTPUTS = 12
# Rows differ in MKL below 20,000 numbers, and with one output.
_MKL_NUMBERS = 1 << 17
_MKL_OUTPUTS = 64


class Linear(Protocol):
    """x [T, K] to [T, N]."""

    def __call__(self, x: Tensor) -> Tensor:
        """The product, with the bias where there is one."""
        ...


class MklLinear:
    """MKL's layout for large float32 weights; the tensor given may be freed afterwards."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), MAX_ROWS)
        # The operator reads only the shape of what it calls the original weight.
        self._shaped = weight.new_zeros(1, 1).expand(weight.shape)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return torch.ops.mkl._mkl_linear(x, self._weight, self._shaped, self._bias, len(x))


class PackedLinear:
    """oneDNN's layout, made once; the tensor given may be freed afterwards."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs = weight.shape[0]
        if missing := max(0, _MIN_OUTPUTS - self._outputs):
            weight = F.pad(weight, (0, 0, 0, missing))
            bias = None if bias is None else F.pad(bias, (0, missing))
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y[:, : self._outputs]


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


def maker(device: torch.device, dtype: torch.dtype) -> MakeLinear:
    """The kind of linear layer for a device and number type."""
    if device.type != "cpu":
        return PlainLinear
    if not torch.backends.mkldnn.is_available():
        return TiledLinear
    is_mkl = dtype == torch.float32 and torch.backends.mkl.is_available()
    return _packed if is_mkl else PackedLinear


def _packed(weight: Tensor, bias: Tensor | None) -> Linear:
    """By MKL where its rows are the same too: in small matrices some are not."""
    is_large = weight.numel() >= _MKL_NUMBERS and weight.shape[0] >= _MKL_OUTPUTS
    return MklLinear(weight, bias) if is_large else PackedLinear(weight, bias)


def multiply(x_BMK: Tensor, w_BKN: Tensor) -> Tensor:
    """Batched x · w whose rows do not depend on M: padded to tiles and cut at `MAX_ROWS`."""
    rows, outputs = x_BMK.shape[1], w_BKN.shape[2]
    if outputs < _MIN_BATCH_OUTPUTS:
        return multiply(x_BMK, F.pad(w_BKN, (0, _MIN_BATCH_OUTPUTS - outputs)))[..., :outputs]
    if rows % TILE_ROWS:
        x_BMK = F.pad(x_BMK, (0, 0, 0, -rows % TILE_ROWS))
    if x_BMK.shape[1] <= MAX_ROWS:
        return torch.bmm(x_BMK, w_BKN)[:, :rows]
    parts = [torch.bmm(part, w_BKN) for part in x_BMK.split(MAX_ROWS, dim=1)]
    return torch.cat(parts, dim=1)[:, :rows]
