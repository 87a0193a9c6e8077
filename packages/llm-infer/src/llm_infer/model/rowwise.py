"""Functions of single numbers whose results do not depend on how many rows there are.

torch computes exponentials of whole vectors by one routine and what is left over at the end, or
where two threads meet, by another that rounds otherwise. So rows are filled up to whole vectors,
and go through in parts too small to be shared between threads.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# ATen's loops take two AVX-512 vectors of float32 at a time, and share 32768 numbers or more.
_VECTOR = 32
_SHARED_FROM = 32768


def by_row(function: Callable[[Tensor], Tensor], x_TN: Tensor) -> Tensor:
    """`function`, which works on each number by itself, of x [T, N]; its result is [T, N] too."""
    if x_TN.device.type != "cpu":
        return function(x_TN)
    size = x_TN.shape[-1]
    missing = -size % _VECTOR
    if missing:
        x_TN = F.pad(x_TN, (0, missing))
    rows = max(1, (_SHARED_FROM - 1) // (size + missing))
    if len(x_TN) <= rows:
        out = function(x_TN)
    else:
        out = torch.cat([function(part) for part in x_TN.split(rows)])
    return out[:, :size] if missing else out
