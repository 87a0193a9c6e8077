"""attention's kernels, after FlashAttention-2 (Dao 2023, arXiv:2307.08691).

Queries are rows [tokens, heads, D], all documents one behind the other; so are the keys. A table
gives each tile: its first row, its document's last row (+1) and first, and the same of what its
rows meet on the other side. Strides are of a token and of a head; features are neighbours.
"""

# Outside a kernel a call of a kernel's part raises, so pyright takes it to return nothing.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl


@triton.jit
def _tile(tiles, index):
    """The tile's first row, then the document's bounds on this side and on the other."""
    entry = tiles + index * 5
    return (
        tl.load(entry),
        tl.load(entry + 1),
        tl.load(entry + 2),
        tl.load(entry + 3),
        tl.load(entry + 4),
    )


@triton.jit
def _rows(tensor, rows, stop, token_stride, dim, DIM: tl.constexpr):
    """Rows [ROWS, DIM] of a tensor; zeros beyond the document and beyond its features."""
    columns = tl.arange(0, DIM)[None, :]
    place = tensor + rows[:, None].to(tl.int64) * token_stride + columns
    return tl.load(place, mask=(rows[:, None] < stop) & (columns < dim), other=0.0)


@triton.jit
def _store_rows(tensor, rows, stop, token_stride, dim, value, DIM: tl.constexpr):
    columns = tl.arange(0, DIM)[None, :]
    place = tensor + rows[:, None].to(tl.int64) * token_stride + columns
    seen = (rows[:, None] < stop) & (columns < dim)
    tl.store(place, value.to(tensor.dtype.element_ty), mask=seen)


@triton.jit
def _capped(score, softcap):
    """`softcap * tanh(score / softcap)` and its derivative."""
    # tanh(x) is 2 sigmoid(2 x) - 1.
    squashed = 2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0
    return softcap * squashed, 1.0 - squashed * squashed


@triton.jit
def _sees(query, key, shift, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Whether a query sees a key, both counted from their document's first."""
    distance = query + shift - key
    seen = key >= 0
    if CAUSAL:
        seen = distance >= 0
    if WINDOWED:
        seen = seen & (distance < window)
    return seen


@triton.jit
def forward_kernel(
    q, k, v, out, logs, sinks, tiles, tasks, heads, share,
    q_token, q_head, k_token, k_head, v_token, v_head, dim, value_dim,
    scale, softcap, window,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Outputs [tokens, heads, E] and each row's logarithm of its softmax's sum."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        head = task % heads
        row, stop, begin, key_begin, key_stop = _tile(tiles, task // heads)
        rows = row + tl.arange(0, ROWS)
        shift = (key_stop - key_begin) - (stop - begin)
        first = 0
        last = key_stop - key_begin
        if CAUSAL:
            last = tl.minimum(last, row - begin + ROWS + shift)
        if WINDOWED:
            first = tl.maximum(0, row - begin + shift - window + 1) // KEYS * KEYS
        query = _rows(q + head * q_head, rows, stop, q_token, dim, DIM)
        key_head = head // share
        top = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        if sinks is not None:
            sink = tl.load(sinks + head).to(tl.float32)
            top = tl.zeros([ROWS], tl.float32) + sink
            total = tl.zeros([ROWS], tl.float32) + 1.0
        mixed = tl.zeros([ROWS, VALUE_DIM], tl.float32)
        for start in range(first, last, KEYS):
            keys = start + tl.arange(0, KEYS)
            places = key_begin + keys
            key = _rows(k + key_head * k_head, places, key_stop, k_token, dim, DIM)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            if CAPPED:
                score, _ = _capped(score, softcap)
            seen = _sees((rows - begin)[:, None], keys[None, :], shift, window, CAUSAL, WINDOWED)
            seen = seen & (places[None, :] < key_stop)
            score = tl.where(seen, score, -float("inf"))
            next_top = tl.maximum(top, tl.max(score, axis=1))
            # A row that has seen no key yet is measured from zero: inf - inf is NaN.
            base = tl.where(next_top == -float("inf"), 0.0, next_top)
            portion = tl.exp(score - base[:, None])
            kept = tl.exp(top - base)
            total = total * kept + tl.sum(portion, axis=1)
            value = _rows(v + key_head * v_head, places, key_stop, v_token, value_dim, VALUE_DIM)
            mixed = mixed * kept[:, None]
            mixed += tl.dot(portion.to(value.dtype), value, input_precision="ieee")
            top = next_top
        whole = tl.where(total == 0.0, 1.0, total)
        mean = mixed / whole[:, None]
        out_head = out + head * value_dim
        _store_rows(out_head, rows, stop, heads * value_dim, value_dim, mean, VALUE_DIM)
        log = tl.where(total == 0.0, 0.0, top + tl.log(whole))
        tl.store(logs + rows.to(tl.int64) * heads + head, log, mask=rows < stop)


@triton.jit
def product_kernel(out, grad, products, rows, value_dim, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Each output row's product with its gradient [rows], both contiguous."""
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        places = start + tl.arange(0, ROWS)
        x = _rows(out, places, rows, value_dim, value_dim, DIM).to(tl.float32)
        y = _rows(grad, places, rows, value_dim, value_dim, DIM).to(tl.float32)
        tl.store(products + places, tl.sum(x * y, axis=1), mask=places < rows)


@triton.jit
def query_kernel(
    q, k, v, grad, logs, products, grad_q, tiles, tasks, heads, share,
    q_token, q_head, k_token, k_head, v_token, v_head, dim, value_dim,
    scale, softcap, window,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """The queries' gradient: a program goes over the keys that its queries see."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        head = task % heads
        row, stop, begin, key_begin, key_stop = _tile(tiles, task // heads)
        rows = row + tl.arange(0, ROWS)
        shift = (key_stop - key_begin) - (stop - begin)
        first = 0
        last = key_stop - key_begin
        if CAUSAL:
            last = tl.minimum(last, row - begin + ROWS + shift)
        if WINDOWED:
            first = tl.maximum(0, row - begin + shift - window + 1) // KEYS * KEYS
        query = _rows(q + head * q_head, rows, stop, q_token, dim, DIM)
        upstream = _rows(
            grad + head * value_dim, rows, stop, heads * value_dim, value_dim, VALUE_DIM
        )
        entry = rows.to(tl.int64) * heads + head
        log = tl.load(logs + entry, mask=rows < stop, other=0.0)
        product = tl.load(products + entry, mask=rows < stop, other=0.0)
        key_head = head // share
        result = tl.zeros([ROWS, DIM], tl.float32)
        for start in range(first, last, KEYS):
            keys = start + tl.arange(0, KEYS)
            places = key_begin + keys
            key = _rows(k + key_head * k_head, places, key_stop, k_token, dim, DIM)
            value = _rows(v + key_head * v_head, places, key_stop, v_token, value_dim, VALUE_DIM)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            slope = 1.0
            if CAPPED:
                score, slope = _capped(score, softcap)
            seen = _sees((rows - begin)[:, None], keys[None, :], shift, window, CAUSAL, WINDOWED)
            seen = seen & (places[None, :] < key_stop)
            portion = tl.exp(tl.where(seen, score, -float("inf")) - log[:, None])
            change = tl.dot(upstream, tl.trans(value), input_precision="ieee")
            change = portion * (change - product[:, None]) * slope
            result += tl.dot(change.to(key.dtype), key, input_precision="ieee")
        _store_rows(grad_q + head * dim, rows, stop, heads * dim, dim, result * scale, DIM)


@triton.jit
def key_kernel(
    q, k, v, grad, logs, products, grad_k, grad_v, tiles, tasks, groups, heads, share,
    q_token, q_head, k_token, k_head, v_token, v_head, dim, value_dim,
    scale, softcap, window,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values: a program goes over the queries of its heads' share."""
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        key_head = task % groups
        place, key_stop, key_begin, begin, stop = _tile(tiles, task // groups)
        places = place + tl.arange(0, KEYS)
        keys = places - key_begin
        shift = (key_stop - key_begin) - (stop - begin)
        first = 0
        last = stop - begin
        if CAUSAL:
            first = tl.maximum(0, place - key_begin - shift) // ROWS * ROWS
        if WINDOWED:
            last = tl.minimum(last, place - key_begin + KEYS - shift + window - 1)
        key = _rows(k + key_head * k_head, places, key_stop, k_token, dim, DIM)
        value = _rows(v + key_head * v_head, places, key_stop, v_token, value_dim, VALUE_DIM)
        key_sum = tl.zeros([KEYS, DIM], tl.float32)
        value_sum = tl.zeros([KEYS, VALUE_DIM], tl.float32)
        for head in range(key_head * share, key_head * share + share):
            for start in range(first, last, ROWS):
                rows = begin + start + tl.arange(0, ROWS)
                query = _rows(q + head * q_head, rows, stop, q_token, dim, DIM)
                upstream = _rows(
                    grad + head * value_dim, rows, stop, heads * value_dim, value_dim, VALUE_DIM
                )
                entry = rows.to(tl.int64) * heads + head
                log = tl.load(logs + entry, mask=rows < stop, other=0.0)
                product = tl.load(products + entry, mask=rows < stop, other=0.0)
                score = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
                slope = 1.0
                if CAPPED:
                    score, slope = _capped(score, softcap)
                seen = _sees(
                    (rows - begin)[None, :], keys[:, None], shift, window, CAUSAL, WINDOWED
                )
                seen = seen & (rows[None, :] < stop) & (places[:, None] < key_stop)
                portion = tl.exp(tl.where(seen, score, -float("inf")) - log[None, :])
                value_sum += tl.dot(portion.to(upstream.dtype), upstream, input_precision="ieee")
                change = tl.dot(value, tl.trans(upstream), input_precision="ieee")
                change = portion * (change - product[None, :]) * slope
                key_sum += tl.dot(change.to(query.dtype), query, input_precision="ieee")
        key_out = grad_k + key_head * dim
        _store_rows(key_out, places, key_stop, groups * dim, dim, key_sum * scale, DIM)
        value_out = grad_v + key_head * value_dim
        value_stride = groups * value_dim
        _store_rows(value_out, places, key_stop, value_stride, value_dim, value_sum, VALUE_DIM)
