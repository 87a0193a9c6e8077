"""Kernels of a state that decays and is written to, chunk by chunk: S = exp(g) S + k vᵀ, o = Sᵀ q.

Token tensors are contiguous [B, T, heads, features]; key and query have groups of `share` heads.
States are [B, H, N, K, V], those at the start of each of N chunks. Within a chunk d is the sum of
the log decays up to a token. All is added up in float32. Where `forgotten` is not None (the delta
rule), the values written are what is given less forgotten · S.
"""

# Outside a kernel a call of a kernel's part raises, so pyright takes it to return nothing.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def rows_of(tensor, place, seen, dim, first, DIM: tl.constexpr):
    """Features first to first + DIM of the rows at `place`, float32; zeros where not seen."""
    columns = first + tl.arange(0, DIM)[None, :]
    mask = seen[:, None] & (columns < dim)
    return tl.load(tensor + place[:, None] * dim + columns, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(tensor, place, seen, dim, first, value, DIM: tl.constexpr):
    """The inverse of `rows_of`: rounded as the tensor is."""
    columns = first + tl.arange(0, DIM)[None, :]
    mask = seen[:, None] & (columns < dim)
    place = tensor + place[:, None] * dim + columns
    tl.store(place, value.to(tensor.dtype.element_ty), mask=mask)


@triton.jit
def decays(log_decay, place, seen, CHUNK: tl.constexpr):
    """Exponentials of sums of log decays, as `ops/decay.py` has them.

    Up to each token, of all, from behind each to the last, and from behind a column's to a row's at
    and below the diagonal.
    """
    order = tl.arange(0, CHUNK)
    single = tl.load(log_decay + place, mask=seen, other=0.0).to(tl.float32)
    coarse = tl.floor(single * 256.0) * 0.00390625
    rows, columns, coarse_total = _sums(coarse, CHUNK)
    fine_rows, fine_columns, fine_total = _sums(single - coarse, CHUNK)
    between = (rows[:, None] - columns[None, :]) + (fine_rows[:, None] - fine_columns[None, :])
    between = tl.exp(tl.where(order[:, None] >= order[None, :], between, -float("inf")))
    to_last = tl.exp((coarse_total - rows) + (fine_total - fine_rows))
    return tl.exp(rows + fine_rows), tl.exp(coarse_total + fine_total), to_last, between


@triton.jit
def _sums(x, CHUNK: tl.constexpr):
    """Sums of x [CHUNK] up to each place, for rows and for columns, and of all."""
    order = tl.arange(0, CHUNK)
    rows = tl.sum(tl.where(order[:, None] >= order[None, :], x[None, :], 0.0), axis=1)
    # The same sums along the other axis: a vector is not turned.
    columns = tl.sum(tl.where(order[:, None] <= order[None, :], x[:, None], 0.0), axis=0)
    return rows, columns, tl.sum(x, axis=0)


@triton.jit
def from_last(x, CHUNK: tl.constexpr):
    """Sums of x [CHUNK] from each token to the last."""
    order = tl.arange(0, CHUNK)
    return tl.sum(tl.where(order[:, None] >= order[None, :], x[:, None], 0.0), axis=0)


@triton.jit
def state_kernel(
    key, value, forgotten, log_decay, first, states, written, last,
    pairs, tokens, heads, share, key_dim, value_dim,
    CHUNK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """States, the last of all, and with `forgotten` what is written: a program takes a head."""
    column = tl.program_id(1) * VALUE
    chunks = tl.cdiv(tokens, CHUNK)
    features = tl.arange(0, KEY)
    is_key = features < key_dim
    for pair in range(tl.program_id(0).to(tl.int64), pairs, tl.num_programs(0)):
        head = pair % heads
        base = pair // heads * tokens
        state = tl.zeros([KEY, VALUE], tl.float32)
        if first is not None:
            state = rows_of(first, pair * key_dim + features, is_key, value_dim, column, VALUE)
        for chunk in range(chunks):
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            seen = token < tokens
            state_place = (pair * chunks + chunk) * key_dim + features
            store_rows(states, state_place, is_key, value_dim, column, state, VALUE)
            place = (base + token) * heads + head
            _, left, to_last, _ = decays(log_decay, place, seen, CHUNK)
            new = rows_of(value, place, seen, value_dim, column, VALUE)
            if forgotten is not None:
                gone = rows_of(forgotten, place, seen, key_dim, 0, KEY)
                new -= tl.dot(gone, state, input_precision=PRECISION)
                store_rows(written, place, seen, value_dim, column, new, VALUE)
            key_place = (base + token) * (heads // share) + head // share
            kept = rows_of(key, key_place, seen, key_dim, 0, KEY)
            kept *= to_last[:, None]
            state = state * left
            state += tl.dot(tl.trans(kept), new, input_precision=PRECISION)
        store_rows(last, pair * key_dim + features, is_key, value_dim, column, state, VALUE)


@triton.jit
def output_kernel(
    query, key, written, log_decay, states, out,
    pairs, tokens, heads, share, key_dim, value_dim, scale,
    CHUNK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs [B, T, H, V]: a program takes a head's chunk."""
    column = tl.program_id(1) * VALUE
    chunks = tl.cdiv(tokens, CHUNK)
    features = tl.arange(0, KEY)
    for task in range(tl.program_id(0).to(tl.int64), pairs * chunks, tl.num_programs(0)):
        pair = task // chunks
        head = pair % heads
        token = task % chunks * CHUNK + tl.arange(0, CHUNK)
        seen = token < tokens
        row = pair // heads * tokens + token
        place = row * heads + head
        grown, _, _, between = decays(log_decay, place, seen, CHUNK)
        key_place = row * (heads // share) + head // share
        asked = rows_of(query, key_place, seen, key_dim, 0, KEY) * scale
        held = rows_of(key, key_place, seen, key_dim, 0, KEY)
        scores = tl.dot(asked, tl.trans(held), input_precision=PRECISION) * between
        new = rows_of(written, place, seen, value_dim, column, VALUE)
        result = tl.dot(scores, new, input_precision=PRECISION)
        state_place = task * key_dim + features
        state = rows_of(states, state_place, features < key_dim, value_dim, column, VALUE)
        asked *= grown[:, None]
        result += tl.dot(asked, state, input_precision=PRECISION)
        store_rows(out, place, seen, value_dim, column, result, VALUE)


@triton.jit
def reverse_kernel(
    query, key, forgotten, log_decay, grad, grad_last, grad_states, grad_written, grad_first,
    pairs, tokens, heads, share, key_dim, value_dim, scale,
    CHUNK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the states after each chunk, of the first, and of what is written."""
    column = tl.program_id(1) * VALUE
    chunks = tl.cdiv(tokens, CHUNK)
    features = tl.arange(0, KEY)
    is_key = features < key_dim
    for pair in range(tl.program_id(0).to(tl.int64), pairs, tl.num_programs(0)):
        head = pair % heads
        base = pair // heads * tokens
        ends = pair * key_dim + features
        slope = rows_of(grad_last, ends, is_key, value_dim, column, VALUE)
        for step in range(chunks):
            chunk = chunks - 1 - step
            token = chunk * CHUNK + tl.arange(0, CHUNK)
            seen = token < tokens
            state_place = (pair * chunks + chunk) * key_dim + features
            store_rows(grad_states, state_place, is_key, value_dim, column, slope, VALUE)
            place = (base + token) * heads + head
            grown, left, to_last, between = decays(log_decay, place, seen, CHUNK)
            upstream = rows_of(grad, place, seen, value_dim, column, VALUE)
            key_place = (base + token) * (heads // share) + head // share
            asked = rows_of(query, key_place, seen, key_dim, 0, KEY) * scale
            held = rows_of(key, key_place, seen, key_dim, 0, KEY)
            scores = tl.dot(asked, tl.trans(held), input_precision=PRECISION) * between
            change = tl.dot(tl.trans(scores), upstream, input_precision=PRECISION)
            held *= to_last[:, None]
            change += tl.dot(held, slope, input_precision=PRECISION)
            store_rows(grad_written, place, seen, value_dim, column, change, VALUE)
            asked *= grown[:, None]
            slope = slope * left
            slope += tl.dot(tl.trans(asked), upstream, input_precision=PRECISION)
            if forgotten is not None:
                gone = rows_of(forgotten, place, seen, key_dim, 0, KEY)
                slope -= tl.dot(tl.trans(gone), change, input_precision=PRECISION)
        store_rows(grad_first, ends, is_key, value_dim, column, slope, VALUE)


@triton.jit
def gradient_kernel(
    query, key, written, log_decay, states, grad, grad_states,
    grad_query, grad_key, grad_log_decay,
    pairs, tokens, heads, share, key_dim, value_dim, scale,
    CHUNK: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Each head's gradients of query and key [B, T, H, K], and of the log decays [B, T, H]."""
    chunks = tl.cdiv(tokens, CHUNK)
    features = tl.arange(0, KEY)
    for task in range(tl.program_id(0).to(tl.int64), pairs * chunks, tl.num_programs(0)):
        pair = task // chunks
        head = pair % heads
        token = task % chunks * CHUNK + tl.arange(0, CHUNK)
        seen = token < tokens
        row = pair // heads * tokens + token
        place = row * heads + head
        asked_sum = tl.zeros([CHUNK, KEY], tl.float32)
        kept_sum = tl.zeros([CHUNK, KEY], tl.float32)
        scores = tl.zeros([CHUNK, CHUNK], tl.float32)
        flow = tl.zeros([KEY], tl.float32)
        state_place = task * key_dim + features
        is_key = features < key_dim
        for column in range(0, value_dim, VALUE):
            upstream = rows_of(grad, place, seen, value_dim, column, VALUE)
            new = rows_of(written, place, seen, value_dim, column, VALUE)
            state = rows_of(states, state_place, is_key, value_dim, column, VALUE)
            slope = rows_of(grad_states, state_place, is_key, value_dim, column, VALUE)
            asked_sum += tl.dot(upstream, tl.trans(state), input_precision=PRECISION)
            kept_sum += tl.dot(new, tl.trans(slope), input_precision=PRECISION)
            scores += tl.dot(upstream, tl.trans(new), input_precision=PRECISION)
            flow += tl.sum(state * slope, axis=1)
        grown, left, to_last, between = decays(log_decay, place, seen, CHUNK)
        scores = scores * between * scale
        key_place = row * (heads // share) + head // share
        held = rows_of(key, key_place, seen, key_dim, 0, KEY)
        asked = rows_of(query, key_place, seen, key_dim, 0, KEY)
        asked_sum = asked_sum * (grown * scale)[:, None]
        asked_sum += tl.dot(scores, held, input_precision=PRECISION)
        store_rows(grad_query, place, seen, key_dim, 0, asked_sum, KEY)
        kept_sum = kept_sum * to_last[:, None]
        end = tl.sum(tl.sum(kept_sum * held, axis=1), axis=0) + left * tl.sum(flow, axis=0)
        kept_sum += tl.dot(tl.trans(scores), asked, input_precision=PRECISION)
        store_rows(grad_key, place, seen, key_dim, 0, kept_sum, KEY)
        # exp(d) goes with the query, exp(-d) with the key: so do its gradients.
        slopes = tl.sum(asked_sum * asked, axis=1) - tl.sum(kept_sum * held, axis=1)
        result = from_last(slopes, CHUNK) + end
        tl.store(grad_log_decay + place, result, mask=seen)
