"""rms_norm in Triton: a program takes whole rows, a tile of features at a time."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.rms_norm import triton_kernels as kernels
from llm_kernels_npu.ops.tiles import programs, row_tile, tile_count, warps, wave


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
        y, inverse_rms = normalised(x, weight, eps=eps, offset=offset)
        ctx.save_for_backward(x, weight, inverse_rms)
        ctx.offset = offset
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _NormContext, grad: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        return *gradients(x, weight, grad.contiguous(), inverse_rms, offset=ctx.offset), None, None


def normalised(x: Tensor, weight: Tensor, *, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """The normalised x [..., H] and 1 / rms of each row [R], float32; x is contiguous."""
    size = x.shape[-1]
    rows = x.numel() // size
    y = torch.empty_like(x)
    inverse_rms = torch.empty(rows, dtype=torch.float32, device=x.device)
    tile = row_tile("rms_norm.forward", size, itemsize=x.itemsize, target=TARGET)
    arguments = (x, weight, y, inverse_rms, rows, size, eps, offset)
    grid = (programs(rows),)
    launch(kernels.forward_kernel, grid, *arguments, warps=warps(tile), TILE=tile)
    return y, inverse_rms


def gradients(
    x: Tensor, weight: Tensor, grad: Tensor, inverse_rms: Tensor, *, offset: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x [..., H] and of weight [H]; all tensors are contiguous.

    In one kernel where a tile holds a row; else the weight's is another kernel's.
    """
    size, rows = x.shape[-1], inverse_rms.shape[0]
    grad_x = torch.empty_like(x)
    tile = row_tile("rms_norm.backward", size, itemsize=x.itemsize, target=TARGET)
    whole = tile >= size
    count = wave(rows, target=TARGET) if whole else programs(rows)
    partial = _partials(count if whole else 0, x)
    arguments = (x, weight, grad, inverse_rms, grad_x, partial, rows, size, offset)
    constants = {"TILE": tile, "WITH_WEIGHT": whole}
    launch(kernels.backward_kernel, (count,), *arguments, warps=warps(tile), **constants)
    if not whole:
        partial = _weight_partials(x, grad, inverse_rms)
    return grad_x, partial.sum(0).to(weight.dtype)


def _weight_partials(x: Tensor, grad: Tensor, inverse_rms: Tensor) -> Tensor:
    size, rows = x.shape[-1], inverse_rms.shape[0]
    tile = row_tile("rms_norm.weight", size, itemsize=x.itemsize, target=TARGET)
    tiles = tile_count(size, tile)
    grid = (wave(rows, target=TARGET, others=tiles), tiles)
    partial = _partials(grid[0], x)
    arguments = (x, grad, inverse_rms, partial, rows, size)
    launch(kernels.weight_kernel, grid, *arguments, warps=warps(tile), TILE=tile)
    return partial


def _partials(count: int, x: Tensor) -> Tensor:
    """One row for each program to leave its share of the weight's gradient in."""
    return torch.empty(count, x.shape[-1], dtype=torch.float32, device=x.device)
