"""matmul_add by PyTorch's own products."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def matmul_add(out: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """See `reference.matmul_add`."""
    if x.dtype is not out.dtype and x.device.type == "cuda":
        # Only cuda multiplies 16 bits into float32 without widening the factors first.
        return out.add_(torch.mm(x.T, y, out_dtype=torch.float32))
    return out.addmm_(wide(x).T, wide(y))
