"""Kernels of the gated units: a program takes one tile of columns, of one row after another."""

# Outside a kernel a call of a kernel's part raises, so pyright takes it to return nothing.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def _activated(gate, ACTIVATION: tl.constexpr):
    """The activation of the gate, and its derivative."""
    if ACTIVATION == "silu":
        portion = tl.sigmoid(gate)
        slope = portion * (1.0 + gate * (1.0 - portion))
    elif ACTIVATION == "gelu":
        portion = 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
        slope = portion + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    else:
        # gelu_tanh: (1 + tanh(u)) / 2 is sigmoid(2 u).
        portion = tl.sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate))
        inner_slope = 1.5957691216057308 * (1.0 + 3 * 0.044715 * gate * gate)
        slope = portion + gate * portion * (1.0 - portion) * inner_slope
    return gate * portion, slope


@triton.jit
def forward_kernel(x, y, rows, size, TILE: tl.constexpr, ACTIVATION: tl.constexpr):
    """Gated columns y [rows, size] of x [rows, 2 size]."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    seen = columns < size
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        first = row * 2 * size + columns
        gate = tl.load(x + first, mask=seen, other=0.0).to(tl.float32)
        up = tl.load(x + first + size, mask=seen, other=0.0).to(tl.float32)
        activated, _ = _activated(gate, ACTIVATION)
        tl.store(y + row * size + columns, (activated * up).to(y.dtype.element_ty), mask=seen)


@triton.jit
def backward_kernel(x, grad, grad_x, rows, size, TILE: tl.constexpr, ACTIVATION: tl.constexpr):
    """The gradient of x [rows, 2 size]."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    seen = columns < size
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        first = row * 2 * size + columns
        gate = tl.load(x + first, mask=seen, other=0.0).to(tl.float32)
        up = tl.load(x + first + size, mask=seen, other=0.0).to(tl.float32)
        upstream = tl.load(grad + row * size + columns, mask=seen, other=0.0).to(tl.float32)
        activated, slope = _activated(gate, ACTIVATION)
        grad_gate = upstream * up * slope
        grad_up = upstream * activated
        tl.store(grad_x + first, grad_gate.to(grad_x.dtype.element_ty), mask=seen)
        tl.store(grad_x + first + size, grad_up.to(grad_x.dtype.element_ty), mask=seen)
