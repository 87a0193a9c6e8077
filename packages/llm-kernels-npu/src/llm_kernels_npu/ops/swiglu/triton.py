"""swiglu in Triton: a program takes one tile of columns of one row after another."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.swiglu import triton_kernels as kernels
from llm_kernels_npu.ops.tiles import programs, row_tile, tile_count, warps

_MOST_COLUMNS = 4096


def swiglu(x: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Swiglu.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(x)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        size = x.shape[-1] // 2
        y = x.new_empty((*x.shape[:-1], size))
        _each_tile(kernels.forward_kernel, "swiglu.forward", x, y, size=size)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Context, grad: Tensor
    ) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        size = grad.shape[-1]
        _each_tile(
            kernels.backward_kernel,
            "swiglu.backward",
            x,
            grad.contiguous(),
            grad_x,
            size=size,
        )
        return grad_x


def _each_tile(kernel: object, name: str, *tensors: Tensor, size: int) -> None:
    rows = tensors[0].numel() // max(2 * size, 1)
    tile = row_tile(name, size, itemsize=tensors[0].itemsize, target=TARGET, most=_MOST_COLUMNS)
    tiles = tile_count(size, tile)
    grid = (programs(rows, others=tiles), tiles)
    launch(kernel, grid, *tensors, rows, size, warps=warps(tile), TILE=tile)
