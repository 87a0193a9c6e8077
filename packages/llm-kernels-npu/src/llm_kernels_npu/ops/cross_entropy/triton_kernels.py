"""cross_entropy's kernels: a program takes whole rows, a tile of the vocabulary at a time."""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(logits, targets, losses, totals, rows, vocab, ignore_index, TILE: tl.constexpr):
    """Each row's loss and the logarithm of its sum of exponentials, in one pass."""
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        top = -float("inf")
        shift = 0.0
        total = 0.0
        for start in range(0, vocab, TILE):
            columns = start + tl.arange(0, TILE)
            seen = columns < vocab
            value = tl.load(logits + row * vocab + columns, mask=seen, other=-float("inf"))
            value = value.to(tl.float32)
            top = tl.maximum(top, tl.max(value, axis=0))
            # Below all so far there is nothing to measure from; a top of +inf makes the loss NaN.
            next_shift = tl.where(top == -float("inf"), 0.0, top)
            kept = tl.where(total > 0.0, total * tl.exp(shift - next_shift), 0.0)
            total = kept + tl.sum(tl.exp(value - next_shift), axis=0)
            shift = next_shift
        logarithm = shift + tl.log(total)
        tl.store(totals + row, logarithm)
        target = tl.load(targets + row)
        inside = (target >= 0) & (target < vocab)
        picked = tl.load(logits + row * vocab + target, mask=inside, other=float("nan"))
        loss = tl.where(target == ignore_index, 0.0, logarithm - picked.to(tl.float32))
        tl.store(losses + row, loss)


@triton.jit
def backward_kernel(
    logits, targets, totals, grad, grad_logits, rows, vocab, ignore_index, TILE: tl.constexpr
):
    """The gradient of the logits, which it may overwrite."""
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        target = tl.load(targets + row)
        upstream = tl.where(target == ignore_index, 0.0, tl.load(grad + row))
        # In the columns' own type: a tile of 64-bit numbers would be half of what is on chip.
        word = target.to(tl.int32)
        total = tl.load(totals + row)
        for start in range(0, vocab, TILE):
            columns = start + tl.arange(0, TILE)
            place = row * vocab + columns
            value = tl.load(logits + place, mask=columns < vocab, other=0.0).to(tl.float32)
            slope = tl.exp(value - total) - tl.where(columns == word, 1.0, 0.0)
            # Not a product alone: an ignored row may hold what is infinite.
            result = tl.where(upstream == 0.0, 0.0, slope * upstream)
            tl.store(
                grad_logits + place, result.to(grad_logits.dtype.element_ty), mask=columns < vocab
            )
