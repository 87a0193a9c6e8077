"""gated_delta_rule's own kernels: what the tokens of a chunk write, each knowing the ones before.

L = tril(beta · k kᵀ · exp(d_row - d_column), -1) of a chunk, T = (I + L)⁻¹ (arXiv:2412.06464,
section 3.3). The states and outputs that follow are `ops/recurrence_kernels.py`'s.
"""

# Outside a kernel a call of a kernel's part raises, so pyright takes it to return nothing.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl

from llm_kernels_npu.ops.recurrence_kernels import decays, from_last, rows_of, store_rows


@triton.jit
def solve_kernel(
    key, value, beta, log_decay, forgotten, given, inverses,
    pairs, tokens, heads, share, key_dim, value_dim,
    CHUNK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`given` = T (beta v), `forgotten` = T (beta exp(d) k), and T itself where that is kept."""
    chunks = tl.cdiv(tokens, CHUNK)
    order = tl.arange(0, CHUNK)
    for task in range(tl.program_id(0).to(tl.int64), pairs * chunks, tl.num_programs(0)):
        pair = task // chunks
        head = pair % heads
        token = task % chunks * CHUNK + order
        seen = token < tokens
        row = pair // heads * tokens + token
        place = row * heads + head
        grown, _, _, between = decays(log_decay, place, seen, CHUNK)
        strength = tl.load(beta + place, mask=seen, other=0.0).to(tl.float32)
        held = rows_of(key, row * (heads // share) + head // share, seen, key_dim, 0, KEY)
        lower = tl.dot(held, tl.trans(held), input_precision=PRECISION) * between
        lower = tl.where(order[:, None] > order[None, :], lower * strength[:, None], 0.0)
        inverse = tl.where(order[:, None] == order[None, :], 1.0, 0.0)
        # Row by row, as repeated keys make powers of L too large for a product of them.
        upper = tl.trans(lower)
        for step in range(1, tl.minimum(CHUNK, tokens - task % chunks * CHUNK)):
            entries = tl.sum(tl.where(order[None, :] == step, upper, 0.0), axis=1)
            change = tl.sum(entries[:, None] * inverse, axis=0)
            inverse = tl.where(order[:, None] == step, inverse - change[None, :], inverse)
        if inverses is not None:
            store_rows(inverses, task * CHUNK + order, order < CHUNK, CHUNK, 0, inverse, CHUNK)
        held *= (strength * grown)[:, None]
        left = tl.dot(inverse, held, input_precision=PRECISION)
        store_rows(forgotten, place, seen, key_dim, 0, left, KEY)
        for column in range(0, value_dim, VALUE):
            new = rows_of(value, place, seen, value_dim, column, VALUE) * strength[:, None]
            new = tl.dot(inverse, new, input_precision=PRECISION)
            store_rows(given, place, seen, value_dim, column, new, VALUE)


@triton.jit
def forgotten_gradient_kernel(
    states, grad_written, grad_forgotten, pairs, tokens, heads, key_dim, value_dim,
    CHUNK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of `forgotten`, -grad_written Sᵀ."""
    chunks = tl.cdiv(tokens, CHUNK)
    features = tl.arange(0, KEY)
    for task in range(tl.program_id(0).to(tl.int64), pairs * chunks, tl.num_programs(0)):
        pair = task // chunks
        token = task % chunks * CHUNK + tl.arange(0, CHUNK)
        seen = token < tokens
        place = (pair // heads * tokens + token) * heads + pair % heads
        total = tl.zeros([CHUNK, KEY], tl.float32)
        state_place = task * key_dim + features
        for column in range(0, value_dim, VALUE):
            slope = rows_of(grad_written, place, seen, value_dim, column, VALUE)
            state = rows_of(states, state_place, features < key_dim, value_dim, column, VALUE)
            total += tl.dot(slope, tl.trans(state), input_precision=PRECISION)
        store_rows(grad_forgotten, place, seen, key_dim, 0, -total, KEY)


@triton.jit
def turn_kernel(
    inverses, grad, turned, pairs, tokens, heads, dim,
    CHUNK: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`turned` = Tᵀ grad, both [B, T, H, dim]: the gradient of what T multiplied."""
    column = tl.program_id(1) * TILE
    chunks = tl.cdiv(tokens, CHUNK)
    order = tl.arange(0, CHUNK)
    for task in range(tl.program_id(0).to(tl.int64), pairs * chunks, tl.num_programs(0)):
        pair = task // chunks
        token = task % chunks * CHUNK + order
        seen = token < tokens
        place = (pair // heads * tokens + token) * heads + pair % heads
        inverse = rows_of(inverses, task * CHUNK + order, order < CHUNK, CHUNK, 0, CHUNK)
        slope = rows_of(grad, place, seen, dim, column, TILE)
        result = tl.dot(tl.trans(inverse), slope, input_precision=PRECISION)
        store_rows(turned, place, seen, dim, column, result, TILE)


@triton.jit
def solve_gradient_kernel(
    key, value, beta, log_decay, forgotten, given, turned_forgotten, turned_given,
    grad_key, grad_value, grad_beta, grad_log_decay,
    pairs, tokens, heads, share, key_dim, value_dim,
    CHUNK: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of value and beta, and the rest of key's and of the log decays', added.

    `turned_*` are the gradients of beta exp(d) k and of beta v.
    """
    chunks = tl.cdiv(tokens, CHUNK)
    order = tl.arange(0, CHUNK)
    for task in range(tl.program_id(0).to(tl.int64), pairs * chunks, tl.num_programs(0)):
        pair = task // chunks
        head = pair % heads
        token = task % chunks * CHUNK + order
        seen = token < tokens
        row = pair // heads * tokens + token
        place = row * heads + head
        key_place = row * (heads // share) + head // share
        strength = tl.load(beta + place, mask=seen, other=0.0).to(tl.float32)
        lower = tl.zeros([CHUNK, CHUNK], tl.float32)
        strengths = tl.zeros([CHUNK], tl.float32)
        for column in range(0, value_dim, TILE):
            right = rows_of(turned_given, place, seen, value_dim, column, TILE)
            new = rows_of(given, place, seen, value_dim, column, TILE)
            lower += tl.dot(right, tl.trans(new), input_precision=PRECISION)
            new = rows_of(value, place, seen, value_dim, column, TILE)
            strengths += tl.sum(right * new, axis=1)
            store_rows(grad_value, place, seen, value_dim, column, right * strength[:, None], TILE)
        grown, _, _, between = decays(log_decay, place, seen, CHUNK)
        products = tl.zeros([CHUNK, CHUNK], tl.float32)
        for column in range(0, key_dim, TILE):
            right = rows_of(turned_forgotten, place, seen, key_dim, column, TILE)
            left = rows_of(forgotten, place, seen, key_dim, column, TILE)
            lower += tl.dot(right, tl.trans(left), input_precision=PRECISION)
            held = rows_of(key, key_place, seen, key_dim, column, TILE)
            products += tl.dot(held, tl.trans(held), input_precision=PRECISION)
            strengths += tl.sum(right * held, axis=1) * grown
        lower = tl.where(order[:, None] > order[None, :], -lower * between, 0.0)
        strengths += tl.sum(lower * products, axis=1)
        tl.store(grad_beta + place, strengths.to(grad_beta.dtype.element_ty), mask=seen)
        lower *= strength[:, None]
        # exp(d) goes with a row's key, exp(-d) with a column's: so do their gradients.
        slopes = tl.zeros([CHUNK], tl.float32)
        for column in range(0, key_dim, TILE):
            held = rows_of(key, key_place, seen, key_dim, column, TILE)
            right = rows_of(turned_forgotten, place, seen, key_dim, column, TILE)
            right *= (grown * strength)[:, None]
            right += tl.dot(lower, held, input_precision=PRECISION)
            other = tl.dot(tl.trans(lower), held, input_precision=PRECISION)
            slopes += tl.sum((right - other) * held, axis=1)
            right += other + rows_of(grad_key, place, seen, key_dim, column, TILE)
            store_rows(grad_key, place, seen, key_dim, column, right, TILE)
        result = tl.load(grad_log_decay + place, mask=seen, other=0.0) + from_last(slopes, CHUNK)
        tl.store(grad_log_decay + place, result, mask=seen)
