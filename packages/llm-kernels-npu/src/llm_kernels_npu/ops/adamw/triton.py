"""adamw in Triton: one pass over the four tensors."""

from torch import Tensor

from llm_kernels_npu.ops.adamw import triton_kernels as kernels
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.tiles import programs, row_tile, tile_count, warps

_MOST_ELEMENTS = 2048


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """See `reference.adamw`."""
    size = param.numel()
    itemsize = grad.itemsize
    tile = row_tile("adamw.forward", size, itemsize=itemsize, target=TARGET, most=_MOST_ELEMENTS)
    tiles = tile_count(size, tile)
    numbers = (
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        lr / (1 - beta1**step),
        1 / (1 - beta2**step),
        eps,
        1 - lr * weight_decay,
    )
    tensors = (param, grad, exp_avg, exp_avg_sq)
    # As floats: an integer, lr=1 say, would be another kernel's signature.
    floats = tuple(map(float, numbers))
    grid = (programs(tiles),)
    launch(
        kernels.forward_kernel, grid, *tensors, size, tiles, *floats, warps=warps(tile), TILE=tile
    )
    return param
