"""The kernel of adamw: a program takes one tile of elements after another."""

# Outside a kernel a call of a kernel's part raises, so pyright takes it to return nothing.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    size,
    tiles,
    beta1,
    rest1,
    beta2,
    rest2,
    rate,
    correction2,
    eps,
    keep,
    TILE: tl.constexpr,
):
    """Write param and both averages, float32, of `size` elements; each is read once.

    `rest` is 1 - beta, `rate` is lr / (1 - beta1^step), `correction2` is 1 / (1 - beta2^step) and
    `keep` is 1 - lr * weight_decay: numbers that lose digits in float32 come from the host.
    """
    for tile in range(tl.program_id(0).to(tl.int64), tiles, tl.num_programs(0)):
        at = tile * TILE + tl.arange(0, TILE)
        seen = at < size
        slope = tl.load(grad + at, mask=seen, other=0.0).to(tl.float32)
        mean = tl.load(exp_avg + at, mask=seen, other=0.0) * beta1 + slope * rest1
        square = tl.load(exp_avg_sq + at, mask=seen, other=0.0) * beta2 + slope * slope * rest2
        tl.store(exp_avg + at, mean, mask=seen)
        tl.store(exp_avg_sq + at, square, mask=seen)
        deviation = tl.sqrt(square * correction2) + eps
        moved = tl.load(param + at, mask=seen, other=0.0) * keep - rate * mean / deviation
        tl.store(param + at, moved, mask=seen)
