"""add_rms_norm by PyTorch's own operators."""

from torch import Tensor

from llm_kernels_npu.ops.rms_norm.torch import rms_norm


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    total = x + residual
    return rms_norm(total, weight, eps=eps, offset=offset), total
