"""The gated units in Triton: swiglu and geglu, one function with gradients."""

from collections.abc import Callable
from typing import Literal, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops import gated_kernels as kernels
from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.tiles import programs, row_tile, tile_count, warps

Activation = Literal["silu", "gelu", "gelu_tanh"]

_MOST_COLUMNS = 4096


def gated(x: Tensor, *, activation: Activation) -> Tensor:
    """`activation(gate) * up` of x [..., 2F] that holds gate, then up → [..., F]."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Gated.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(x, activation)


class _GatedContext(Context, Protocol):
    activation: Activation


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _GatedContext, x: Tensor, activation: Activation) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.activation = activation
        y = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        _each_tile(kernels.forward_kernel, f"{activation}.forward", x, y, activation=activation)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _GatedContext, grad: Tensor
    ) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        tensors = (x, grad.contiguous(), grad_x)
        name = f"{ctx.activation}.backward"
        _each_tile(kernels.backward_kernel, name, *tensors, activation=ctx.activation)
        return grad_x, None


def _each_tile(kernel: object, cost: str, x: Tensor, *others: Tensor, activation: str) -> None:
    size = x.shape[-1] // 2
    rows = x.numel() // x.shape[-1]
    tile = row_tile(cost, size, itemsize=x.itemsize, target=TARGET, most=_MOST_COLUMNS)
    tiles = tile_count(size, tile)
    grid = (programs(rows, others=tiles), tiles)
    constants = {"TILE": tile, "ACTIVATION": activation}
    launch(kernel, grid, x, *others, rows, size, warps=warps(tile), **constants)
