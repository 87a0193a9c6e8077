"""Kernels of the norms: a program takes whole rows, a tile of features at a time.

A layer norm has means and may have a bias, a root-mean-square norm has neither: `means` and `bias`
are None then. `residual`, `total` and `grad_total` belong to the norm of a sum alone.
"""

import triton
import triton.language as tl


@triton.jit
def _input(x, residual, place, seen):
    """What is normalised, in float32: x, or its sum with the residual rounded as it is stored."""
    value = tl.load(x + place, mask=seen, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + place, mask=seen, other=0.0).to(tl.float32)
        value = value.to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def forward_kernel(
    x, residual, weight, bias, y, total, means, inverses, rows, size, eps, offset,
    TILE: tl.constexpr,
):  # fmt: skip
    """Normalised rows y [rows, size], each row's mean and 1 / deviation."""
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        mean = 0.0
        if means is not None:
            sums = tl.zeros([TILE], tl.float32)
            for start in range(0, size, TILE):
                columns = start + tl.arange(0, TILE)
                sums += _input(x, residual, row * size + columns, columns < size)
            mean = tl.sum(sums, axis=0) / size
            tl.store(means + row, mean)
        squares = tl.zeros([TILE], tl.float32)
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < size
            centred = _input(x, residual, row * size + columns, seen)
            if means is not None:
                centred = tl.where(seen, centred - mean, 0.0)
            squares += centred * centred
        inverse = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / size + eps)
        tl.store(inverses + row, inverse)
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < size
            place = row * size + columns
            value = _input(x, residual, place, seen)
            if total is not None:
                tl.store(total + place, value.to(total.dtype.element_ty), mask=seen)
            if means is not None:
                value -= mean
            gain = tl.load(weight + columns, mask=seen, other=0.0).to(tl.float32) + offset
            result = value * inverse * gain
            if bias is not None:
                result += tl.load(bias + columns, mask=seen, other=0.0).to(tl.float32)
            tl.store(y + place, result.to(y.dtype.element_ty), mask=seen)


@triton.jit
def _normalised(x, means, row, inverse, place, seen):
    """The row's tile before the weight; rubbish where it is not seen."""
    value = tl.load(x + place, mask=seen, other=0.0).to(tl.float32)
    if means is not None:
        value -= tl.load(means + row)
    return value * inverse


@triton.jit
def backward_kernel(
    x, weight, grad, grad_total, means, inverses, grad_x, partials, rows, size, offset,
    TILE: tl.constexpr, WITH_WEIGHT: tl.constexpr,
):  # fmt: skip
    """The gradient of x; in tiles as wide as a row, also each program's share of the others'."""
    weight_sum = tl.zeros([TILE], tl.float32)
    bias_sum = tl.zeros([TILE], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        inverse = tl.load(inverses + row)
        products = tl.zeros([TILE], tl.float32)
        slopes = tl.zeros([TILE], tl.float32)
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < size
            place = row * size + columns
            slope = tl.load(grad + place, mask=seen, other=0.0).to(tl.float32)
            slope *= tl.load(weight + columns, mask=seen, other=0.0).to(tl.float32) + offset
            products += slope * _normalised(x, means, row, inverse, place, seen)
            if means is not None:
                slopes += slope
        along = tl.sum(products, axis=0) / size
        level = 0.0
        if means is not None:
            level = tl.sum(slopes, axis=0) / size
        for start in range(0, size, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < size
            place = row * size + columns
            slope = tl.load(grad + place, mask=seen, other=0.0).to(tl.float32)
            gain = tl.load(weight + columns, mask=seen, other=0.0).to(tl.float32) + offset
            normalised = _normalised(x, means, row, inverse, place, seen)
            result = inverse * (slope * gain - normalised * along - level)
            if grad_total is not None:
                result += tl.load(grad_total + place, mask=seen, other=0.0).to(tl.float32)
            tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask=seen)
            if WITH_WEIGHT:  # this tile is the whole row
                weight_sum += slope * normalised
                if means is not None:
                    bias_sum += slope
    if WITH_WEIGHT:
        columns = tl.arange(0, TILE)
        share = partials + tl.program_id(0) * size + columns
        tl.store(share, weight_sum, mask=columns < size)
        if means is not None:
            tl.store(share + tl.num_programs(0) * size, bias_sum, mask=columns < size)


@triton.jit
def weight_kernel(x, grad, means, inverses, partials, rows, size, TILE: tl.constexpr):
    """Each program's share of the gradients of weight and bias, one tile of columns."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    seen = columns < size
    weight_sum = tl.zeros([TILE], tl.float32)
    bias_sum = tl.zeros([TILE], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        slope = tl.load(grad + row * size + columns, mask=seen, other=0.0).to(tl.float32)
        inverse = tl.load(inverses + row)
        weight_sum += slope * _normalised(x, means, row, inverse, row * size + columns, seen)
        if means is not None:
            bias_sum += slope
    share = partials + tl.program_id(0) * size + columns
    tl.store(share, weight_sum, mask=seen)
    if means is not None:
        tl.store(share + tl.num_programs(0) * size, bias_sum, mask=seen)
