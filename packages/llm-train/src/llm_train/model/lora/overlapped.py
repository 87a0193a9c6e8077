"""`lora.overlap`: linears whose adapters are computed while the linear's own exchange is under way.

What MindSpeed-LLM calls CCLoRA. The results are those of plain adapters.
"""

from functools import partial
from typing import Any, cast

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from llm_train.model.lora.adapter import Adapter
from llm_train.model.lora.products import Products, Weights, products_of


def overlap(linear: ColumnParallelLinear | RowParallelLinear, adapter: Adapter) -> None:
    """Have a linear compute its adapter itself, from now on."""
    products = products_of(adapter)
    if isinstance(linear, ColumnParallelLinear):
        # The bias, and whether it is added here, stay megatron-core's matter.
        linear._forward_impl = partial(_column, adapter, products)  # pyright: ignore[reportAttributeAccessIssue]  # our own instance
    else:
        assert linear.input_is_parallel
        linear.forward = partial(_row, linear, adapter, products)  # pyright: ignore[reportAttributeAccessIssue]  # our own instance


def _column(
    adapter: Adapter,
    products: Products,
    *,
    input: torch.Tensor,  # noqa: A002  # megatron-core's name
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    **_exchanges: Any,
) -> torch.Tensor:
    """[t, B, I] or [T, B, I] → [T, B, o]."""
    return _applied(input, weight, bias, adapter, products)


def _row(
    linear: RowParallelLinear, adapter: Adapter, products: Products, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[T, B, i] → [t, B, O] or [T, B, O], and the bias that is still to add."""
    out = _applied(x, linear.weight, None, adapter, products)
    if linear.skip_bias_add or linear.bias is None:
        return out, linear.bias
    return out + linear.bias, None


def _applied(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    adapter: Adapter,
    products: Products,
) -> torch.Tensor:
    out = _Overlapped.apply(x.flatten(0, -2), weight, bias, adapter.A, adapter.B, products)
    return cast("torch.Tensor", out).unflatten(0, (-1, *x.shape[1:-1]))


class _Overlapped(torch.autograd.Function):
    """A linear with its adapter, [T, …] → [T, …]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        products: Products,
    ) -> torch.Tensor:
        out, low = products.forward(x, Weights(weight=weight, bias=bias, a=a, b=b))
        ctx.products = products
        ctx.save_for_backward(x, weight, a, b, low)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        found = ctx.products.backward(
            grad_outputs[0],
            x,
            low,
            Weights(weight=weight, bias=None, a=a, b=b),
            needs_x=ctx.needs_input_grad[0],
        )
        return found.x, None, None, found.a, found.b, None
