"""rope in Triton, with its inverse rotation as the gradient."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.launch import launch
from llm_kernels_npu.ops.rope import triton_kernels as kernels
from llm_kernels_npu.ops.tiles import power_of_two, programs, rope_tile, tile_count


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """See `reference.rope`."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Rotate.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(x, cos, sin, interleaved)


class _RotateContext(Context, Protocol):
    interleaved: bool


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _RotateContext, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(x, cos, sin, interleaved=interleaved, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _RotateContext, grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        found = _rotated(grad, cos, sin, interleaved=ctx.interleaved, transposed=True)
        return found, None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool, transposed: bool) -> Tensor:
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)
    dim, rotary_dim = x.shape[-1], cos.shape[-1]
    outer, middle, inner = _padded(x.shape[:-1])
    table = cos.view(*_padded(cos.shape[:-1]), rotary_dim)
    strides = [
        step if size > 1 else 0 for size, step in zip(table.shape, table.stride(), strict=True)
    ]
    half, passing = rotary_dim // 2, dim - rotary_dim
    constants = {
        "TILE": rope_tile(inner, half=half, passing=passing),
        "HALF": power_of_two(half),
        "PASSING": power_of_two(passing) if passing else 0,
        "INTERLEAVED": interleaved,
        "TRANSPOSED": transposed,
    }
    tiles = tile_count(inner, constants["TILE"])
    grid = (programs(outer * middle, others=tiles), tiles)
    numbers = (outer, middle, inner, *strides[:3], dim, half)
    launch(kernels.rotate_kernel, grid, x, cos, sin, out, *numbers, warps=4, **constants)
    return out


def _padded(sizes: torch.Size) -> tuple[int, int, int]:
    """Three leading sizes, ones before those there are."""
    first, second, third = (1,) * (3 - len(sizes)) + tuple(sizes)
    return first, second, third
