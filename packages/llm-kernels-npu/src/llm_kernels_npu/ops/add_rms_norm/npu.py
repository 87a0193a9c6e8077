"""add_rms_norm by `torch_npu.npu_add_rms_norm`, which has no gradient of its own."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., tuple[Tensor, Tensor]], _AddRmsNorm.apply)  # pyright: ignore[reportUnknownMemberType]
    if offset == 0.0 and x.dtype is weight.dtype:
        return run(x, residual, weight, eps)
    # The fused operator wants all in one dtype; 1 + weight in bfloat16 would lose low bits.
    out, total = run(x.float(), residual.float(), weight.float() + offset, eps)
    return out.to(x.dtype), total.to(x.dtype)


class _AddRmsNorm(torch.autograd.Function):
    """The backward is that of npu_rms_norm on the sum; both addends get the same gradient."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        out, inverse_rms, total = torch.ops.npu.npu_add_rms_norm.default(x, residual, weight, eps)
        ctx.save_for_backward(total, weight, inverse_rms)
        return out, total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Context, grad_out: Tensor, grad_total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        total, weight, inverse_rms = ctx.saved_tensors
        through_norm, grad_weight = torch.ops.npu.npu_rms_norm_backward.default(
            grad_out, total, weight, inverse_rms
        )
        grad = through_norm + grad_total
        return grad, grad, grad_weight.to(weight.dtype), None
