"""Decays of linear recurrences: log decays kept finite, and their sums between tokens without loss.

`exp(d_row - d_column)` of running sums d is what is left at one token of what another put in. Steep
decays make the sums large and their difference nothing but rounding; -inf, which forgets all,
makes it NaN. So log decays end where exp is zero, and each is taken apart into a multiple of 1/256
and a rest: sums of the first are exact, those of the second small.
"""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide

# Twice the logarithm of the smallest number would do; all are exact in 16 bits too.
_ZERO_FROM = -104.0
_ZERO_FROM_64 = -746.0
STEPS = 256
"""Steps of a log decay's coarse part up to 1: 64 tokens of -104 are 1.7 million of them."""

# B batch, H heads, N chunks of C tokens


def bounded(log_decay: Tensor) -> Tensor:
    """Log decays whose exp is the same in float32 (float64 for float64), none of them -inf."""
    floor = _ZERO_FROM_64 if log_decay.dtype is torch.float64 else _ZERO_FROM
    return log_decay.clamp(min=floor)


def running(log_decay_BHNC1: Tensor) -> tuple[Tensor, Tensor]:
    """Of bounded log decays the sums from the chunk's start [B, H, N, C, 1], and what is left.

    That is [B, H, N, C, C]: at a token (row) of what one up to it (column) put in.
    """
    single = wide(log_decay_BHNC1)
    coarse = (single.detach() * STEPS).floor() / STEPS
    fine = (single - coarse).cumsum(-2)
    coarse = coarse.cumsum(-2)
    size = single.shape[-2]
    is_later = torch.ones(size, size, dtype=torch.bool, device=single.device).triu(1)
    between = (coarse - coarse.mT).add_(fine).sub_(fine.mT)
    return coarse + fine, between.masked_fill_(is_later, float("-inf")).exp()
