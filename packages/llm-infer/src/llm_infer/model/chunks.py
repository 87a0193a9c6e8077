"""How a text's tokens go through a recurrent layer: in chunks whose borders are the text's.

A chunk is computed as a few products of matrices of one size, with rows of zeros for tokens that
are not there yet, and from the state at its start. So a token's result is the same to the bit
whether its chunk came whole, in parts, or token by token: what came before of it is computed again
from the inputs, which are kept. The state goes on when the chunk is full.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llm_infer.model.cache import Segment, StatePool, Step

# T tokens of the step, X inputs of a token, H heads, C tokens of a chunk, V channels of a result

Tokens = Sequence[Tensor]
"""What a layer makes of inputs, each [H, tokens, ...] in float32."""


class Recurrence(Protocol):
    """A layer's arithmetic. Tokens of zeros change nothing that comes before them."""

    def tokens(self, seen: Tensor) -> Tokens:
        """Of inputs [reach + n, X]: those of the last n, which the convolution looks back from."""
        ...

    def results(self, chunk: Tokens, state: Tensor) -> tuple[Tensor, Tensor]:
        """Results [H, C, V] of a chunk from the state before it, and what `state_after` wants."""
        ...

    def state_after(self, chunk: Tokens, state: Tensor, written: Tensor) -> Tensor:
        """The state behind a full chunk."""
        ...


def through_chunks(
    recurrence: Recurrence, inputs_TX: Tensor, pool: StatePool, step: Step, out_THV: Tensor
) -> None:
    """Results of all tokens of a step into `out_THV`; the pool has what comes after them."""
    for segment in step.segments:
        _through(recurrence, inputs_TX, pool, segment, out_THV)


def _through(
    recurrence: Recurrence, inputs_TX: Tensor, pool: StatePool, segment: Segment, out_THV: Tensor
) -> None:
    size = pool.chunk_tokens
    state, before = pool.before(segment)
    seen = torch.cat([before, inputs_TX[segment.start : segment.stop]])
    tokens = recurrence.tokens(seen)
    earlier = segment.offset % size
    count, row = earlier + segment.stop - segment.start, segment.start
    for first in range(0, count, size):
        stop = min(first + size, count)
        chunk = [_filled(one, first, stop, size) for one in tokens]
        results_HCV, written = recurrence.results(chunk, state)
        new = slice(max(earlier - first, 0), stop - first)
        out_THV[row : row + new.stop - new.start] = results_HCV[:, new].transpose(0, 1)
        row += new.stop - new.start
        if stop == first + size:
            state = recurrence.state_after(chunk, state, written)
    pool.keep(segment, state, seen)


def _filled(x: Tensor, first: int, stop: int, size: int) -> Tensor:
    """Tokens `first` to `stop` of [H, tokens, ...] as one of `size`, where they lie for themselves.

    Products of numbers that lie otherwise may be computed otherwise.
    """
    chunk = x.new_zeros(len(x), size, *x.shape[2:])
    chunk[:, : stop - first] = x[:, first:stop]
    return chunk
