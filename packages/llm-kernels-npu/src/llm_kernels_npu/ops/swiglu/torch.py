"""swiglu by PyTorch's silu, without a float32 copy but of float16."""

import torch
from torch import Tensor
from torch.nn import functional


def swiglu(x: Tensor) -> Tensor:
    """See `reference.swiglu`; in bfloat16 silu is rounded once more.

    float16 is computed in float32: its gradient overflows on the way, and infinity times 0 is NaN.
    """
    gate, up = (x.float() if x.dtype is torch.float16 else x).chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(x.dtype)
