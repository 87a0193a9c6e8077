"""layer_norm in Triton."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.norm import gradients, normalise


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float, offset: float = 0.0
) -> Tensor:
    """See `reference.layer_norm`."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _LayerNorm.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(x, weight, bias, eps, offset)


class _NormContext(Context, Protocol):
    offset: float
    bias_dtype: torch.dtype | None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _NormContext,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        offset: float,
    ) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        found = normalise(
            x,
            weight,
            bias=None if bias is None else bias.contiguous(),
            operator="layer_norm",
            eps=eps,
            offset=offset,
            centred=True,
        )
        assert found.means is not None
        ctx.save_for_backward(x, weight, found.inverses, found.means)
        ctx.offset = offset
        ctx.bias_dtype = None if bias is None else bias.dtype
        return found.output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _NormContext, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        x, weight, inverses, means = ctx.saved_tensors
        grad_x, (grad_weight, grad_bias) = gradients(
            x,
            weight,
            grad.contiguous(),
            operator="layer_norm",
            offset=ctx.offset,
            inverses=inverses,
            means=means,
        )
        without_bias = ctx.bias_dtype is None
        bias_result = None if without_bias else grad_bias.to(ctx.bias_dtype)
        return grad_x, grad_weight.to(weight.dtype), bias_result, None, None
