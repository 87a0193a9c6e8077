"""rope's kernel: a program takes one outer index and a tile of the innermost leading axis."""

# Outside a kernel a call of a kernel's part raises, so pyright takes it to return nothing.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def _pairs(
    tensor, row, seen_rows, rotary_half,
    TILE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The first and the second feature of every pair [TILE, HALF], float32."""
    if INTERLEAVED:
        # Read as they lie, then told apart: triton-ascend 3.2 does not read every other number.
        columns = tl.arange(0, 2 * HALF)[None, :]
        seen = seen_rows & (columns < 2 * rotary_half)
        both = tl.load(tensor + row + columns, mask=seen, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (TILE, HALF, 2)))
    else:
        columns = tl.arange(0, HALF)[None, :]
        seen = seen_rows & (columns < rotary_half)
        first = tl.load(tensor + row + columns, mask=seen, other=0.0).to(tl.float32)
        place = tensor + row + rotary_half + columns
        second = tl.load(place, mask=seen, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_pairs(
    tensor, row, seen_rows, rotary_half, first, second,
    TILE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    kind = tensor.dtype.element_ty
    if INTERLEAVED:
        columns = tl.arange(0, 2 * HALF)[None, :]
        both = tl.reshape(tl.join(first, second), (TILE, 2 * HALF))
        seen = seen_rows & (columns < 2 * rotary_half)
        tl.store(tensor + row + columns, both.to(kind), mask=seen)
    else:
        columns = tl.arange(0, HALF)[None, :]
        seen = seen_rows & (columns < rotary_half)
        tl.store(tensor + row + columns, first.to(kind), mask=seen)
        tl.store(tensor + row + rotary_half + columns, second.to(kind), mask=seen)


@triton.jit
def rotate_kernel(
    x, cos, sin, out, outer, middle, inner,
    cos_outer, cos_middle, cos_inner, dim, rotary_half,
    TILE: tl.constexpr, HALF: tl.constexpr, PASSING: tl.constexpr,
    INTERLEAVED: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Features x [outer, middle, inner, dim] rotated, or turned back with the tables' transpose.

    `cos_*` are the tables' strides along x's leading axes, 0 where they are broadcast.
    """
    lanes = tl.program_id(1) * TILE + tl.arange(0, TILE)[:, None]
    here = lanes < inner
    for index in range(tl.program_id(0).to(tl.int64), outer * middle, tl.num_programs(0)):
        row = (index * inner + lanes) * dim
        entry = index // middle * cos_outer + index % middle * cos_middle + lanes * cos_inner
        x1, x2 = _pairs(x, row, here, rotary_half, TILE, HALF, INTERLEAVED)
        cos1, cos2 = _pairs(cos, entry, here, rotary_half, TILE, HALF, INTERLEAVED)
        sin1, sin2 = _pairs(sin, entry, here, rotary_half, TILE, HALF, INTERLEAVED)
        if TRANSPOSED:
            turned1 = x1 * cos1 + x2 * sin2
            turned2 = x2 * cos2 - x1 * sin1
        else:
            turned1 = x1 * cos1 - x2 * sin1
            turned2 = x2 * cos2 + x1 * sin2
        _store_pairs(out, row, here, rotary_half, turned1, turned2, TILE, HALF, INTERLEAVED)
        if PASSING > 0:
            rest = 2 * rotary_half + tl.arange(0, PASSING)[None, :]
            kept = here & (rest < dim)
            tl.store(out + row + rest, tl.load(x + row + rest, mask=kept), mask=kept)
