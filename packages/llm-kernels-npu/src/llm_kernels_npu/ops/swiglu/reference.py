"""The specification of swiglu."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def swiglu(x: Tensor) -> Tensor:
    """`gate * sigmoid(gate) * up`, where x holds gate then up.

    x [..., 2F] → [..., F] in x's dtype. All in float32, rounded once at the end.
    """
    gate, up = wide(x).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(x.dtype)
