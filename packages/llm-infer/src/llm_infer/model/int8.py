"""Weights as 8-bit integers with a scale for each output channel, on a CPU.

Only weights lose digits. A row of activations is taken to 24 bits below its largest number and cut
into three digits of 8 bits; FBGEMM multiplies each digit with the weights in integers and adds in
32 bits, which is exact. So a row comes out the same, to the bit, however many there are, and one
reading of the weights, a quarter of float32's, serves the three digits. CPUs that would cut sums
off at 16 bits, those without VNNI, get digits of 7 bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.stored import Arrange

# T tokens, K inputs, N outputs
_LARGEST_CODE = 127
# FBGEMM stores digits from -127 to 127 as 1 to 255. The sum of two products with a weight then
# takes 17 bits; with the smaller digits, as 1 to 127, it takes 16.
_LARGE_DIGIT, _SMALL_DIGIT = 127, 63
# A row of zeros is divided by this.
_SMALLEST = 1e-30
_MAX_ROWS = 256
_CHUNK_NUMBERS = 1 << 20


def reason_against(device: torch.device) -> str | None:
    """Why 8-bit weights do not run on a device of this machine; None when they do."""
    if device.type != "cpu":
        return f"8-bit weights run on a CPU, found device {device}; use --device cpu"
    engines: list[str] = torch.backends.quantized.supported_engines
    if "fbgemm" not in engines:
        found = ", ".join(engines) or "none"
        return f"8-bit weights need FBGEMM (x86-64 with AVX2); this torch and CPU have: {found}"
    return None


def quantized(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [N, K] and scales float32 [N]: `codes = round(weight / scale)`.

    A scale is the row's largest absolute number / 127; 1 for a row of zeros. Works through parts,
    so that no second float32 copy of a large weight is held.
    """
    codes_NK = torch.empty(weight_NK.shape, dtype=torch.int8)
    scales_N = torch.empty(len(weight_NK), dtype=torch.float32)
    rows = max(1, _CHUNK_NUMBERS // weight_NK.shape[1])
    for first in range(0, len(weight_NK), rows):
        part = weight_NK[first : first + rows].float()
        scale = part.abs().amax(dim=1) / _LARGEST_CODE
        scale[scale == 0] = 1.0
        codes_NK[first : first + rows] = (part / scale[:, None]).round_()
        scales_N[first : first + rows] = scale
    return codes_NK, scales_N


class Int8Linear:
    """A `Linear` of 8-bit weights; the tensor given may be freed afterwards."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        codes_NK, scales_N = quantized(weight)
        zeros = torch.zeros(len(codes_NK), dtype=torch.long)
        tensor = torch.ops.aten._make_per_channel_quantized_tensor(
            codes_NK, scales_N.double(), zeros, 0
        )
        with _fbgemm():
            self._packed = torch.ops.quantized.linear_prepack(tensor, None)
        self._outputs, self._bias = len(codes_NK), bias
        self._digit = largest_digit()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        if len(x) > _MAX_ROWS:
            return torch.cat([self(part) for part in x.split(_MAX_ROWS)])
        if not len(x):
            return x.new_empty(0, self._outputs)
        x_TK = x.float()
        largest = torch.linalg.vector_norm(x_TK, torch.inf, dim=-1, keepdim=True)
        largest.clamp_min_(_SMALLEST)
        base = 2 * self._digit
        digits_3TK = _digits(x_TK * (self._digit / largest), base)
        high, middle, low = _products(digits_3TK.flatten(0, 1), self._packed, self._digit).view(
            3, len(x), -1
        )
        # Not add(alpha=): a factor that is no power of two is fused for some numbers only.
        high.add_(middle.add_(low.mul_(1 / base)).mul_(1 / base))
        y = high.mul_(largest.mul_(1 / self._digit)).to(x.dtype)
        return y if self._bias is None else y + self._bias


@cache
def largest_digit() -> int:
    """The largest digit whose products with weights this CPU adds up exactly."""
    count, ones = 64, torch.ones(16, 64)
    with _fbgemm():
        tensor = torch.quantize_per_tensor(_LARGEST_CODE * ones, 1.0, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(tensor, None)
    found = _products(_LARGE_DIGIT * ones, packed, _LARGE_DIGIT)
    is_exact = bool((found == count * _LARGE_DIGIT * _LARGEST_CODE).all())
    return _LARGE_DIGIT if is_exact else _SMALL_DIGIT


def _products(digits_TK: Tensor, packed: Any, digit: int) -> Tensor:
    """float32 [T, N] of whole numbers, rounded to such, from -`digit` to `digit`."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        digits_TK, 1.0, digit + 1, packed
    )


def _digits(x_TK: Tensor, base: int) -> Tensor:
    """Whole numbers a, b, c [3, T, K] with x = a + b / base + c / base², for |x| up to base / 2.

    c is not rounded yet: `_products` does that.
    """
    digits_3TK = x_TK.new_empty(3, *x_TK.shape)
    torch.round(x_TK, out=digits_3TK[0])
    rest = (x_TK - digits_3TK[0]).mul_(base)
    torch.round(rest, out=digits_3TK[1])
    torch.sub(rest, digits_3TK[1], out=digits_3TK[2]).mul_(base)
    return digits_3TK


class Int8Table:
    """A `Table` of 8-bit rows, each with its scale."""

    def __init__(self, rows_VH: Tensor, dtype: torch.dtype) -> None:
        self._codes_VH, self._scales_V = quantized(rows_VH)
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._codes_VH)

    def __call__(self, tokens_T: Tensor) -> Tensor:
        """See `Table`."""
        scales_T1 = self._scales_V[tokens_T][:, None]
        return (F.embedding(tokens_T, self._codes_VH) * scales_T1).to(self._dtype)


class Int8Matrices:
    """`Matrices` of 8-bit numbers, made into numbers of the model's type at each use."""

    def __init__(self, weight_NK: Tensor, dtype: torch.dtype) -> None:
        self._codes_NK, scales_N = quantized(weight_NK)
        self._scales_N1, self._dtype = scales_N[:, None], dtype

    def arranged(self, arrange: Arrange) -> Callable[[], Tensor]:
        """See `Matrices`; `arrange` may not merge K with another dimension."""
        codes, scales = arrange(self._codes_NK).contiguous(), arrange(self._scales_N1)
        return lambda: (codes * scales).to(self._dtype)


@contextmanager
def _fbgemm() -> Iterator[None]:
    """FBGEMM's layout for what is packed inside; torch's own choice may be another library's."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
