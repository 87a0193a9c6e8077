"""causal_conv1d's kernels: a program takes a tile of channels and tile after tile of tokens.

Tokens are counted from the first of x: those of the initial state, which may be None, are -1 to
1 - W. `taps` is the weight turned, [W, C], so that neighbouring channels are neighbours in memory.
"""

# Outside a kernel a call of a kernel's part raises, so pyright takes it to return nothing.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def _tokens(
    x, state, batch, token, columns, tokens, channels, x_batch, x_token, BEFORE: tl.constexpr
):
    """A tile of inputs in float32; zeros beyond both ends of the sequence."""
    inside = columns < channels
    seen = (token >= 0) & (token < tokens) & inside
    value = tl.load(x + batch * x_batch + token * x_token + columns, mask=seen, other=0.0)
    value = value.to(tl.float32)
    if state is not None:
        place = batch * BEFORE * channels + (token + BEFORE) * channels + columns
        seen = (token >= -BEFORE) & (token < 0) & inside
        value += tl.load(state + place, mask=seen, other=0.0).to(tl.float32)
    return value


@triton.jit
def _convolved(
    x, taps, bias, state, batch, rows, columns, tokens, channels, x_batch, x_token,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sums over taps [ROWS, COLUMNS], before the activation."""
    inside = columns < channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for w in tl.static_range(WIDTH):
        tap = tl.load(taps + w * channels + columns, mask=inside, other=0.0).to(tl.float32)
        token = rows + (w + 1 - WIDTH)
        value = _tokens(
            x, state, batch, token, columns, tokens, channels, x_batch, x_token, WIDTH - 1
        )
        total += value * tap
    if bias is not None:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def forward_kernel(
    x, taps, bias, state, out, batches, tokens, channels, x_batch, x_token,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Outputs [batches, tokens, channels]."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tiles = tl.cdiv(tokens, ROWS)
    for task in range(tl.program_id(0), batches * tiles, tl.num_programs(0)):
        batch = (task // tiles).to(tl.int64)
        rows = task % tiles * ROWS + tl.arange(0, ROWS)[:, None]
        total = _convolved(
            x, taps, bias, state, batch, rows, columns, tokens, channels, x_batch, x_token,
            WIDTH, ROWS, COLUMNS,
        )  # fmt: skip
        if SILU:
            total *= tl.sigmoid(total)
        place = out + batch * tokens * channels + rows * channels + columns
        seen = (rows < tokens) & (columns < channels)
        tl.store(place, total.to(out.dtype.element_ty), mask=seen)


@triton.jit
def weight_kernel(
    x, taps, bias, state, grad, slopes, partials, batches, tokens, channels, x_batch, x_token,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    KINDS: tl.constexpr,
):  # fmt: skip
    """Each program's share of the taps' and the bias's gradients [programs, W + 1, channels].

    With an activation also the gradients of what it was taken of, `slopes`.
    """
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = columns < channels
    kinds = tl.arange(0, KINDS)[:, None]
    sums = tl.zeros([KINDS, COLUMNS], tl.float32)
    tiles = tl.cdiv(tokens, ROWS)
    for task in range(tl.program_id(0), batches * tiles, tl.num_programs(0)):
        batch = (task // tiles).to(tl.int64)
        rows = task % tiles * ROWS + tl.arange(0, ROWS)[:, None]
        place = batch * tokens * channels + rows * channels + columns
        seen = (rows < tokens) & inside
        slope = tl.load(grad + place, mask=seen, other=0.0).to(tl.float32)
        if SILU:
            total = _convolved(
                x, taps, bias, state, batch, rows, columns, tokens, channels, x_batch, x_token,
                WIDTH, ROWS, COLUMNS,
            )  # fmt: skip
            gate = tl.sigmoid(total)
            slope *= gate * (1.0 + total * (1.0 - gate))
            tl.store(slopes + place, slope.to(slopes.dtype.element_ty), mask=seen)
        for w in tl.static_range(WIDTH):
            token = rows + (w + 1 - WIDTH)
            value = _tokens(
                x, state, batch, token, columns, tokens, channels, x_batch, x_token, WIDTH - 1
            )
            share = tl.sum(slope * value, axis=0)[None, :]
            sums += tl.where(kinds == w, share, 0.0)
        sums += tl.where(kinds == WIDTH, tl.sum(slope, axis=0)[None, :], 0.0)
    place = partials + (tl.program_id(0) * (WIDTH + 1) + kinds) * channels + columns
    tl.store(place, sums, mask=(kinds <= WIDTH) & inside)


@triton.jit
def input_kernel(
    slopes, taps, grad_x, grad_state, batches, tokens, channels,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of x and, where it is not None, of the initial state."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = columns < channels
    before = 0
    if grad_state is not None:
        before = WIDTH - 1
    tiles = tl.cdiv(tokens + before, ROWS)
    for task in range(tl.program_id(0), batches * tiles, tl.num_programs(0)):
        batch = (task // tiles).to(tl.int64)
        rows = task % tiles * ROWS - before + tl.arange(0, ROWS)[:, None]
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for w in tl.static_range(WIDTH):
            tap = tl.load(taps + w * channels + columns, mask=inside, other=0.0).to(tl.float32)
            later = rows + (WIDTH - 1 - w)
            seen = (later >= 0) & (later < tokens) & inside
            place = batch * tokens * channels + later * channels + columns
            total += tap * tl.load(slopes + place, mask=seen, other=0.0).to(tl.float32)
        result = total.to(grad_x.dtype.element_ty)
        seen = (rows >= 0) & (rows < tokens) & inside
        place = batch * tokens * channels + rows * channels + columns
        tl.store(grad_x + place, result, mask=seen)
        if grad_state is not None:
            place = batch * before * channels + (rows + before) * channels + columns
            tl.store(grad_state + place, result, mask=(rows < 0) & inside)
