"""Linear layers whose rows come out the same, to the bit, however many there are.

A matrix product on a CPU takes another path, and rounds otherwise, for one row than for sixteen.
With weights packed by oneDNN it does not, up to a block of rows: its kernels add the products of a
row in one order (held to by tests), unless it shares them between threads, which `PackedLinear`
keeps it from. Eight rows take little longer than one, since reading the weights is what takes the
time. Where oneDNN is not, rows go through in tiles of one size.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS = 16
MAX_ROWS = 128
_EXPECTED_ROWS = 16
# With AVX2 oneDNN cuts the products of a row otherwise from 65 or 81 rows on, by the layout.
BLOCK_ROWS = 64
# With one output oneDNN takes another path, too.
_MIN_OUTPUTS = 8
# Of other products rows differ with fewer outputs, by their place in a tile.
_MIN_TILE_OUTPUTS = 12
# Up to here oneDNN never shares the products of a row between threads.
_UNSHARED_INPUTS = 1024
# Up to here it computes all outputs of a few rows in one thread, or shares products.
_ONE_THREAD_OUTPUTS = 256
# No more than these are computed together.
_BLOCK_OUTPUTS = 64


class Linear(Protocol):
    """x [T, K] to [T, N]."""

    def __call__(self, x: Tensor) -> Tensor:
        """The product, with the bias where there is one."""
        ...


class PackedLinear:
    """oneDNN's layout, made once; the tensor given may be freed afterwards.

    Rows stay the same for the number of threads that torch has when this is made.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs, inputs = weight.shape
        weight, self._bias = _filled_up(weight, bias, _MIN_OUTPUTS)
        shares = shares_products(self._outputs, inputs, threads=torch.get_num_threads())
        self._width = _UNSHARED_INPUTS if shares else inputs
        self._weights = [
            torch.ops.mkldnn._reorder_linear_weight(part.contiguous(), _EXPECTED_ROWS)
            for part in weight.split(self._width, dim=1)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        if len(x) > BLOCK_ROWS:
            return torch.cat([self(part) for part in x.split(BLOCK_ROWS)])
        if len(self._weights) == 1:
            y = _packed_product(x, self._weights[0], self._bias)
        else:
            y = self._summed(x)
        return y if y.shape[1] == self._outputs else y[:, : self._outputs]

    @property
    def is_one_kernel(self) -> bool:
        """Whether one kernel computes just the outputs, so that `swish` and `times` may be used."""
        return len(self._weights) == 1 and self._outputs >= _MIN_OUTPUTS

    def swish(self, x: Tensor) -> Tensor:
        """`y * sigmoid(y)` of the product y, for up to `BLOCK_ROWS` rows."""
        return _packed_product(x, self._weights[0], self._bias, "swish")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The product times numbers of its own shape, for up to `BLOCK_ROWS` rows."""
        return torch.ops.mkldnn._linear_pointwise.binary(
            x, factor, self._weights[0], self._bias, "mul"
        )

    def _summed(self, x: Tensor) -> Tensor:
        first, *others = zip(x.split(self._width, dim=1), self._weights, strict=True)
        y = _packed_product(*first, self._bias)
        for part, weight in others:
            y += _packed_product(part, weight, None)
        return y


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of a number type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32


def shares_products(outputs: int, inputs: int, *, threads: int) -> bool:
    """Whether oneDNN may share the products of a row between threads, for some number of rows.

    From `use_parallel_ic_reduction` in oneDNN 3.7's jit_brgemm_inner_product_utils.cpp, for one
    block of rows, on the safe side. Later kernels of oneDNN are held to it by tests.
    """
    if threads == 1 or inputs <= _UNSHARED_INPUTS:
        return False
    if outputs <= _ONE_THREAD_OUTPUTS:
        return True
    return outputs // _BLOCK_OUTPUTS < 2 * threads * -(-inputs // _UNSHARED_INPUTS)


def _packed_product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")


class TiledLinear:
    """Tiles of `TILE_ROWS` rows, the last filled up with zeros."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs = len(weight)
        self._weight, self._bias = _filled_up(weight, bias, _MIN_TILE_OUTPUTS)

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        missing = -x.shape[0] % TILE_ROWS
        tiles = F.pad(x, (0, 0, 0, missing)).split(TILE_ROWS)
        y = torch.cat([F.linear(tile, self._weight, self._bias) for tile in tiles])
        return y[: len(x), : self._outputs]


class PlainLinear:
    """torch's own."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return F.linear(x, self._weight, self._bias)


def _filled_up(weight: Tensor, bias: Tensor | None, outputs: int) -> tuple[Tensor, Tensor | None]:
    """At least so many outputs; those added are zero."""
    missing = outputs - len(weight)
    if missing <= 0:
        return weight, bias
    return F.pad(weight, (0, 0, 0, missing)), None if bias is None else F.pad(bias, (0, missing))


def multiply(x_BMK: Tensor, w_BKN: Tensor) -> Tensor:
    """Batched x · w whose rows do not depend on M: padded to tiles and cut at `MAX_ROWS`."""
    rows, outputs = x_BMK.shape[1], w_BKN.shape[2]
    if outputs < _MIN_TILE_OUTPUTS:
        return multiply(x_BMK, F.pad(w_BKN, (0, _MIN_TILE_OUTPUTS - outputs)))[..., :outputs]
    if rows % TILE_ROWS:
        x_BMK = F.pad(x_BMK, (0, 0, 0, -rows % TILE_ROWS))
    if x_BMK.shape[1] <= MAX_ROWS:
        return torch.bmm(x_BMK, w_BKN)[:, :rows]
    parts = [torch.bmm(part, w_BKN) for part in x_BMK.split(MAX_ROWS, dim=1)]
    return torch.cat(parts, dim=1)[:, :rows]
