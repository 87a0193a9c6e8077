"""Weights as 8-bit integers with a scale for each output channel, on a CPU.

Only weights lose digits. A row of activations is taken to 21 bits below its largest number and cut
into three digits of 7 bits; FBGEMM multiplies each digit with the weights in integers and adds in
32 bits, which is exact. So a row comes out the same, to the bit, however many there are, and one
reading of the weights, a quarter of float32's, serves the three digits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.stored import Arrange

# T tokens, K inputs, N outputs
_LARGEST_CODE = 127
# Digits are -64 to 64, stored by FBGEMM as 0 to 128. Two products of such a digit and a weight,
# 2 * 128 * 127, fit into 16 bits, where CPUs without VNNI would cut them off.
_DIGIT = 64
_BASE = 128
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

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        if len(x) > _MAX_ROWS:
            return torch.cat([self(part) for part in x.split(_MAX_ROWS)])
        if not len(x):
            return x.new_empty(0, self._outputs)
        x_TK = x.float()
        largest = torch.linalg.vector_norm(x_TK, torch.inf, dim=-1, keepdim=True)
        largest.clamp_min_(_SMALLEST)
        digits_3TK = _digits(x_TK * (_DIGIT / largest))
        high, middle, low = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            digits_3TK.flatten(0, 1), 1.0, _DIGIT, self._packed
        ).view(3, len(x), -1)
        high.add_(middle, alpha=1 / _BASE).add_(low, alpha=1 / _BASE**2)
        y = high.mul_(largest.mul_(1 / _DIGIT)).to(x.dtype)
        return y if self._bias is None else y + self._bias


def _digits(x_TK: Tensor) -> Tensor:
    """Whole numbers a, b, c [3, T, K] with x = a + b / 128 + c / 128², for |x| up to 64.

    c is not rounded yet: the product does that. Nothing here rounds but `round`: what is left of x
    has fewer digits than x.
    """
    digits_3TK = x_TK.new_empty(3, *x_TK.shape)
    torch.round(x_TK, out=digits_3TK[0])
    rest = (x_TK - digits_3TK[0]).mul_(_BASE)
    torch.round(rest, out=digits_3TK[1])
    torch.sub(rest, digits_3TK[1], out=digits_3TK[2]).mul_(_BASE)
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
