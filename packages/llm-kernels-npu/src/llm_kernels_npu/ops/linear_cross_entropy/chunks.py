"""linear_cross_entropy's rows in chunks: how many a chunk, and a chunk's part of the gradients."""

from torch import Tensor

_MIN_CHUNK_ROWS = 256


def best_rows(rows: int, *, hidden_size: int, vocab_size: int) -> int:
    """Rows a chunk: as many as make its logits as large as all of hidden, or as half of weight.

    Each chunk reads and writes the weight's gradient once, so few rows would make that the work.
    """
    return max(_MIN_CHUNK_ROWS, rows * hidden_size // max(vocab_size, 1), hidden_size // 2)


def chunks(hidden: Tensor, weight: Tensor, *, chunk_rows: int | None) -> list[slice]:
    """The rows of each chunk, first to last: `chunk_rows`, None = as many as are best."""
    rows, hidden_size = hidden.shape
    step = chunk_rows or best_rows(rows, hidden_size=hidden_size, vocab_size=weight.shape[0])
    return [slice(start, start + step) for start in range(0, rows, step)]


def add_outer(total: Tensor, slopes: Tensor, hidden: Tensor) -> None:
    """`total += slopes.T @ hidden`: slopes [n, V], hidden [n, H], total [V, H] float32 or wider.

    Chunks add up in float32: in bfloat16 late ones would vanish.
    """
    if total.dtype is hidden.dtype:
        total.addmm_(slopes.T, hidden)
    else:
        total += slopes.T @ hidden
