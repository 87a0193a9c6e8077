"""The specification of add_rms_norm."""

from torch import Tensor

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.rms_norm.reference import rms_norm


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`total = x + residual`; returns `(rms_norm(total), total)`.

    x and residual [..., H], weight [H] → two [..., H] in x's dtype. The sum is made in float32 and
    rounded once; the norm reads the rounded sum, so that both outputs are those of two steps.
    """
    total = (wide(x) + wide(residual)).to(x.dtype)
    return rms_norm(total, weight, eps=eps, offset=offset), total
