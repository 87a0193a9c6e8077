"""geglu by PyTorch's gelu, without a float32 copy but of float16."""

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.signatures import GeluFormula


def geglu(x: Tensor, *, approximate: GeluFormula = "none") -> Tensor:
    """See `reference.geglu`; in bfloat16 gelu is rounded once more.

    float16 is computed in float32: its gradient overflows on the way, and infinity times 0 is NaN.
    """
    gate, up = (x.float() if x.dtype is torch.float16 else x).chunk(2, dim=-1)
    return (functional.gelu(gate, approximate=approximate) * up).to(x.dtype)
