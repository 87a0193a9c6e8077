"""rms_norm's kernels: a program takes whole rows, a tile of features at a time."""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(x, weight, y, inverse_rms, rows, size, eps, offset, TILE: tl.constexpr):
    """Normalised rows y [rows, size] and 1 / rms of each row."""
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        squares = tl.zeros([TILE], tl.float32)
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            value = tl.load(x + row * size + columns, mask=columns < size, other=0.0)
            squares += value.to(tl.float32) * value.to(tl.float32)
        inverse = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / size + eps)
        tl.store(inverse_rms + row, inverse)
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < size
            value = tl.load(x + row * size + columns, mask=seen, other=0.0).to(tl.float32)
            gain = tl.load(weight + columns, mask=seen, other=0.0).to(tl.float32) + offset
            scaled = value * inverse * gain
            tl.store(y + row * size + columns, scaled.to(y.dtype.element_ty), mask=seen)


@triton.jit
def backward_kernel(
    x, weight, grad, inverse_rms, grad_x, partial, rows, size, offset,
    TILE: tl.constexpr, WITH_WEIGHT: tl.constexpr,
):  # fmt: skip
    """The gradient of x; in tiles as wide as a row, also each program's share of the weight's."""
    weight_sum = tl.zeros([TILE], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        inverse = tl.load(inverse_rms + row)
        products = tl.zeros([TILE], tl.float32)
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < size
            value = tl.load(x + row * size + columns, mask=seen, other=0.0).to(tl.float32)
            slope = tl.load(grad + row * size + columns, mask=seen, other=0.0).to(tl.float32)
            gain = tl.load(weight + columns, mask=seen, other=0.0).to(tl.float32) + offset
            products += slope * gain * value
        along = tl.sum(products, axis=0) * inverse * inverse / size
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < size
            value = tl.load(x + row * size + columns, mask=seen, other=0.0).to(tl.float32)
            slope = tl.load(grad + row * size + columns, mask=seen, other=0.0).to(tl.float32)
            gain = tl.load(weight + columns, mask=seen, other=0.0).to(tl.float32) + offset
            result = inverse * (slope * gain - value * along)
            tl.store(grad_x + row * size + columns, result.to(grad_x.dtype.element_ty), mask=seen)
            if WITH_WEIGHT:  # the one tile is the whole row
                weight_sum += slope * value * inverse
    if WITH_WEIGHT:
        columns = tl.arange(0, TILE)
        tl.store(partial + tl.program_id(0) * size + columns, weight_sum, mask=columns < size)


@triton.jit
def weight_kernel(x, grad, inverse_rms, partial, rows, size, TILE: tl.constexpr):
    """Each program's share [programs, size] of the weight's gradient, one tile of columns."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    seen = columns < size
    weight_sum = tl.zeros([TILE], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        value = tl.load(x + row * size + columns, mask=seen, other=0.0).to(tl.float32)
        slope = tl.load(grad + row * size + columns, mask=seen, other=0.0).to(tl.float32)
        weight_sum += slope * value * tl.load(inverse_rms + row)
    tl.store(partial + tl.program_id(0) * size + columns, weight_sum, mask=seen)
