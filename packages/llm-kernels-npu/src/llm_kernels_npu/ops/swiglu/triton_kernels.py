"""swiglu's kernels: a program takes one tile of columns, of one row after another."""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(x, y, rows, size, TILE: tl.constexpr):
    """Gated columns y [rows, size] of x [rows, 2 size]."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    seen = columns < size
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        gate = tl.load(x + row * 2 * size + columns, mask=seen, other=0.0).to(tl.float32)
        up = tl.load(x + row * 2 * size + size + columns, mask=seen, other=0.0).to(tl.float32)
        result = gate * tl.sigmoid(gate) * up
        tl.store(y + row * size + columns, result.to(y.dtype.element_ty), mask=seen)


@triton.jit
def backward_kernel(x, grad, grad_x, rows, size, TILE: tl.constexpr):
    """The gradient of x [rows, 2 size]."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    seen = columns < size
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        first = row * 2 * size + columns
        gate = tl.load(x + first, mask=seen, other=0.0).to(tl.float32)
        up = tl.load(x + first + size, mask=seen, other=0.0).to(tl.float32)
        slope = tl.load(grad + row * size + columns, mask=seen, other=0.0).to(tl.float32)
        squashed = tl.sigmoid(gate)
        grad_gate = slope * up * squashed * (1.0 + gate * (1.0 - squashed))
        grad_up = slope * gate * squashed
        tl.store(grad_x + first, grad_gate.to(grad_x.dtype.element_ty), mask=seen)
        tl.store(grad_x + first + size, grad_up.to(grad_x.dtype.element_ty), mask=seen)
