"""rms_norm in Triton."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.norm import gradients, normalise


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
    """See `reference.rms_norm`."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _RmsNorm.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(x, weight, eps, offset)


class _NormContext(Context, Protocol):
    offset: float


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _NormContext, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        found = normalise(x, weight, operator="rms_norm", eps=eps, offset=offset)
        ctx.save_for_backward(x, weight, found.inverses)
        ctx.offset = offset
        return found.output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _NormContext, grad: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverses = ctx.saved_tensors
        grad_x, (grad_weight,) = gradients(
            x,
            weight,
            grad.contiguous(),
            operator="rms_norm",
            offset=ctx.offset,
            inverses=inverses,
        )
        return grad_x, grad_weight.to(weight.dtype), None, None
