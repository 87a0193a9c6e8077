"""An fp32 number as its nearest bf16 number and what is left, exactly.

The nearest bf16 number is what a cast gives: ties go to the even one. Read as integers, number and
neighbour differ by at most 2^15, and by +2^15 only in a tie that went down. This one value more
than 16 bits can hold is told apart by a flag.
"""

from typing import NamedTuple

import torch

_TIE = 1 << 15


class Halves(NamedTuple):
    """`high` bf16, `low` int16, `is_tie` bool: three tensors of one shape."""

    high: torch.Tensor
    low: torch.Tensor
    is_tie: torch.Tensor


def split(number: torch.Tensor) -> Halves:
    """Take an fp32 tensor apart; `join` is the inverse, NaNs excepted."""
    high = number.to(torch.bfloat16)
    low = number.view(torch.int32) - _high_bits(high)
    # +2^15 wraps round to -2^15, which the other ties are.
    return Halves(high=high, low=low.to(torch.int16), is_tie=low == _TIE)


def join(halves: Halves) -> torch.Tensor:
    """Put an fp32 tensor together again."""
    low = halves.low.to(torch.int32) + halves.is_tie.to(torch.int32) * (2 * _TIE)
    return (_high_bits(halves.high) + low).view(torch.float32)


def _high_bits(high: torch.Tensor) -> torch.Tensor:
    return high.view(torch.int16).to(torch.int32) << 16
