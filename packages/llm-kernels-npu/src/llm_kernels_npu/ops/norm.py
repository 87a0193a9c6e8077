"""The norms in Triton: how rms_norm, add_rms_norm and layer_norm start their kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_kernels_npu.ops import norm_kernels as kernels
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.tiles import programs, row_tile, tile_count, warps, wave


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """A norm's output [..., H] and what its backward needs of each of the R rows, float32."""

    output: Tensor
    inverses: Tensor
    """1 / deviation [R]."""
    means: Tensor | None
    """[R]; None for a root-mean-square norm."""
    total: Tensor | None
    """The sum [..., H] that was normalised, where a residual was given."""


def normalise(
    x: Tensor,
    weight: Tensor,
    *,
    operator: str,
    eps: float,
    offset: float,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    centred: bool = False,
) -> Normalised:
    """The norm of x + residual over the last dimension; all tensors are contiguous.

    `operator` names the row of `tiles.ROW_COST`. `centred` takes the mean off first.
    """
    size = x.shape[-1]
    rows = x.numel() // size
    output = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    means = x.new_empty(rows, dtype=torch.float32) if centred else None
    inverses = x.new_empty(rows, dtype=torch.float32)
    tile = row_tile(f"{operator}.forward", size, itemsize=x.itemsize, target=TARGET)
    tensors = (x, residual, weight, bias, output, total, means, inverses)
    numbers = (rows, size, eps, offset)
    grid = (programs(rows),)
    launch(kernels.forward_kernel, grid, *tensors, *numbers, warps=warps(tile), TILE=tile)
    return Normalised(output=output, inverses=inverses, means=means, total=total)


def gradients(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    *,
    operator: str,
    offset: float,
    inverses: Tensor,
    means: Tensor | None = None,
    grad_total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of x [..., H] and those of weight and bias [1 or 2, H], float32.

    x is what was normalised; all tensors are contiguous. In one kernel where a tile holds a row;
    else weight's and bias's are another kernel's.
    """
    size, rows = x.shape[-1], inverses.shape[0]
    vectors = 1 if means is None else 2
    grad_x = torch.empty_like(x)
    tile = row_tile(f"{operator}.backward", size, itemsize=x.itemsize, target=TARGET)
    whole = tile >= size
    count = wave(rows, target=TARGET) if whole else programs(rows)
    partials = x.new_empty(vectors, count if whole else 0, size, dtype=torch.float32)
    tensors = (x, weight, grad, grad_total, means, inverses, grad_x, partials)
    constants = {"TILE": tile, "WITH_WEIGHT": whole}
    numbers = (rows, size, offset)
    launch(kernels.backward_kernel, (count,), *tensors, *numbers, warps=warps(tile), **constants)
    if not whole:
        tile = row_tile(f"{operator}.weight", size, itemsize=x.itemsize, target=TARGET)
        tiles = tile_count(size, tile)
        grid = (wave(rows, target=TARGET, others=tiles), tiles)
        partials = x.new_empty(vectors, grid[0], size, dtype=torch.float32)
        tensors = (x, grad, means, inverses, partials)
        launch(kernels.weight_kernel, grid, *tensors, rows, size, warps=warps(tile), TILE=tile)
    return grad_x, partials.sum(1)
