"""add_rms_norm in Triton: the sum is made where it is normalised."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.norm import gradients, normalise


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., tuple[Tensor, Tensor]], _AddRmsNorm.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(x, residual, weight, eps, offset)


class _NormContext(Context, Protocol):
    offset: float


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _NormContext, x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float
    ) -> tuple[Tensor, Tensor]:
        weight = weight.contiguous()
        found = normalise(
            x.contiguous(),
            weight,
            residual=residual.contiguous(),
            operator="add_rms_norm",
            eps=eps,
            offset=offset,
        )
        assert found.total is not None
        ctx.save_for_backward(found.total, weight, found.inverses)
        ctx.offset = offset
        return found.output, found.total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _NormContext, grad: Tensor, grad_total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        total, weight, inverses = ctx.saved_tensors
        grad_sum, (grad_weight,) = gradients(
            total,
            weight,
            grad.contiguous(),
            operator="add_rms_norm",
            offset=ctx.offset,
            inverses=inverses,
            grad_total=grad_total.contiguous(),
        )
        return grad_sum, grad_sum, grad_weight.to(weight.dtype), None, None
