"""Keys and values of all texts, and the tokens of one step with their way into them.

A layer of attention keeps its keys as [groups, slots, channels]: a slot is a token's place,
`block * block_tokens + offset`. Blocks in one run are therefore a view, which attention reads where
it lies; only a scattered text is copied together. A recurrent layer keeps a state a block.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llm_infer.model.fused import Singles


# More make long prompts faster, and each token of an answer slower, as all are computed with it.
MOST_CHUNK_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one text inside one block: `start` to `stop` among the step's tokens.

    `offset` is the first one's place in its block, `blocks` the text's blocks up to that one.
    """

    start: int
    stop: int
    offset: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The tokens of one forward, of any texts, end to end."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    variants: Tensor | None
    """Which rope table a token's text uses, or under dynamic scaling how long its prompt was; None
    where there is one."""
    segments: tuple[Segment, ...]
    last_rows: Tensor
    """Rows whose logits are wanted."""
    block_tokens: int
    tables: Tensor | None = None
    """Blocks [T, N] of each token's text, in a step of one token a text without segments; what a
    text does not have is any block."""
    keys: dict[int | None, "list[Keys]"] = field(default_factory=dict["int | None", "list[Keys]"])
    """Where segments find their keys, by window; the same in all layers of one window."""
    singles: dict[tuple[int | None, int, tuple[int, ...]], "Singles"] = field(
        default_factory=dict["tuple[int | None, int, tuple[int, ...]]", "Singles"]
    )
    """See `fused.singles`, by window, queries of a group and strides of keys."""
    segment_tables: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])
    """See `tables_of_segments`; the same in all layers."""

    def keys_of(self, window: int | None) -> "list[Keys]":
        """Where each segment finds the keys it may see."""
        if window not in self.keys:
            made = [_keys(one, window, self.block_tokens) for one in self.segments]
            self.keys[window] = made
        return self.keys[window]

    def with_segments(self, segments: "tuple[Segment, ...]") -> "Step":
        """The same tokens, some of which are looked at."""
        return replace(self, segments=segments, keys={}, singles={}, segment_tables=[])

    def tables_of_segments(self) -> tuple[Tensor, Tensor]:
        """int32 [N, 4]: a segment's first token, tokens, first position, and where its text's
        blocks begin in the other: int32, all blocks end to end.
        """
        if not self.segment_tables:
            rows, blocks = array("i"), array("i")
            for one in self.segments:
                first = (len(one.blocks) - 1) * self.block_tokens + one.offset
                rows.extend((one.start, one.stop - one.start, first, len(blocks)))
                blocks.extend(one.blocks)
            made = (torch.frombuffer(numbers, dtype=torch.int32) for numbers in (rows, blocks))
            segments, flat = made
            self.segment_tables.append((segments.view(-1, 4), flat))
        return self.segment_tables[0]


@dataclass(frozen=True, slots=True)
class Keys:
    """The blocks a segment attends to: a run of slots, or an index of scattered ones."""

    first_position: int
    count: int
    where: slice | Tensor

    def of(self, pool_GSD: Tensor) -> Tensor:
        """Their part of a pool; a view where they are one run."""
        if isinstance(self.where, slice):
            return pool_GSD[:, self.where]
        return pool_GSD.index_select(1, self.where.to(pool_GSD.device))


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a layer keeps of a token: channels of keys and of values for each group.

    `is_one`: the values are the first channels of the keys and not kept again. `index_dim`: those
    of the key that an indexer chooses by, 0 for none.
    """

    groups: int
    key_dim: int
    value_dim: int
    is_one: bool = False
    index_dim: int = 0

    def bytes_of_token(self, *, element_bytes: int, block_tokens: int) -> int:
        """Memory for one token."""
        del block_tokens
        channels = self.groups * (self.key_dim + (0 if self.is_one else self.value_dim))
        return element_bytes * (channels + self.index_dim)


class Pool:
    """Keys and values of one layer. `values` None: they are the first channels of the keys."""

    def __init__(self, keys: Tensor, values: Tensor | None, value_dim: int) -> None:
        self.keys, self._values, self._value_dim = keys, values, value_dim

    @property
    def values(self) -> Tensor:
        """[groups, slots, value channels]."""
        return self.keys[..., : self._value_dim] if self._values is None else self._values

    def write(self, slots: Tensor, k_TGD: Tensor, v_TGD: Tensor | None) -> None:
        """Put tokens into their slots."""
        self.keys.index_copy_(1, slots, k_TGD.transpose(0, 1))
        if self._values is not None and v_TGD is not None:
            self._values.index_copy_(1, slots, v_TGD.transpose(0, 1))

    def copy(self, source: slice, target: slice) -> None:
        """Put what one run of slots holds into another of the same length."""
        self.keys[:, target] = self.keys[:, source]
        if self._values is not None:
            self._values[:, target] = self._values[:, source]

    def clear(self, first: int, stop: int) -> None:
        """Zero slots, so that what a text left in one cannot reach the next one as NaN.

        Keys not yet written are masked by adding minus infinity to their scores, and get weights
        of 0: of NaN both make NaN.
        """
        self.keys[:, first:stop] = 0
        if self._values is not None:
            self._values[:, first:stop] = 0


@dataclass(frozen=True, slots=True)
class IndexedPool:
    """A layer's keys and values, and the keys that its indexer chooses by in the same slots."""

    kept: Pool
    index: Pool

    def copy(self, source: slice, target: slice) -> None:
        """See `Pool.copy`."""
        self.kept.copy(source, target)
        self.index.copy(source, target)

    def clear(self, first: int, stop: int) -> None:
        """See `Pool.clear`."""
        self.kept.clear(first, stop)
        self.index.clear(first, stop)


@dataclass(frozen=True, slots=True)
class StateShape:
    """What a recurrent layer keeps of a text.

    `state`: its sizes, in float32. `reach`: how many tokens its convolution looks back. `channels`:
    a token's inputs.
    """

    state: tuple[int, int, int]
    reach: int
    channels: int

    def bytes_of_token(self, *, element_bytes: int, block_tokens: int) -> int:
        """A token's part of what its block keeps."""
        rows = self.rows(block_tokens)
        block = 4 * math.prod(self.state) + element_bytes * rows * self.channels
        return -(-block // block_tokens)

    def rows(self, block_tokens: int) -> int:
        """Tokens whose inputs a block keeps: of a chunk but its last one, and those it reaches."""
        return self.reach + chunk_tokens(block_tokens) - 1


def chunk_tokens(block_tokens: int) -> int:
    """Tokens of a chunk: `MOST_CHUNK_TOKENS`, or fewer where blocks do not divide into those."""
    return math.gcd(MOST_CHUNK_TOKENS, block_tokens)


class StatePool:
    """States of one recurrent layer: a block's is the one after its latest full chunk of tokens.

    With it are the inputs of the tokens since, and of those before them that the convolution
    reaches. So a text goes on from its last block, and one that shares full blocks from the last of
    them.
    """

    def __init__(
        self, states: Tensor, inputs: Tensor, shape: StateShape, *, block_tokens: int
    ) -> None:
        """`states` [blocks, numbers], at least those of a state, and `inputs` [blocks, rows, X]."""
        self._states, self._inputs, self._shape = states, inputs, shape
        self._block_tokens, self.chunk_tokens = block_tokens, chunk_tokens(block_tokens)

    def before(self, segment: Segment) -> tuple[Tensor, Tensor]:
        """The state at the start of the chunk that a segment goes on with, which must not be
        changed, and inputs: of that chunk's tokens before the segment, and those they reach.
        """
        own, reach = segment.blocks[-1], self._shape.reach
        last = segment.blocks[-2] if len(segment.blocks) > 1 else None
        since = segment.offset % self.chunk_tokens
        block = own if segment.offset >= self.chunk_tokens else last
        state = self._states.new_zeros(self._shape.state) if block is None else self._state(block)
        block = own if segment.offset else last
        if block is None:
            return state, self._inputs.new_zeros(reach, self._shape.channels)
        return state, self._inputs[block, : reach + since]

    def keep(self, segment: Segment, state: Tensor, seen: Tensor) -> None:
        """Note the state after the latest full chunk and the inputs `seen` up to a segment's end,
        those that `before` told included.
        """
        block, stop = segment.blocks[-1], segment.offset + segment.stop - segment.start
        if stop // self.chunk_tokens > segment.offset // self.chunk_tokens:
            self._state(block).copy_(state)
        kept = seen[len(seen) - self._shape.reach - stop % self.chunk_tokens :]
        self._inputs[block, : len(kept)] = kept

    def copy(self, source: slice, target: slice) -> None:
        """See `Pool.copy`; of whole blocks."""
        of, to = source.start // self._block_tokens, target.start // self._block_tokens
        self._states[to] = self._states[of]
        self._inputs[to] = self._inputs[of]

    def clear(self, first: int, stop: int) -> None:
        """Nothing: what a block keeps is not read before it is written."""

    def _state(self, block: int) -> Tensor:
        return self._states[block, : math.prod(self._shape.state)].view(self._shape.state)


LayerPool = Pool | IndexedPool | StatePool


def segments(
    start_row: int, first: int, stop: int, blocks: Sequence[int], block_tokens: int
) -> list[Segment]:
    """Tokens `first` to `stop` of a text, at rows from `start_row`, cut at borders of blocks."""
    found = list[Segment]()
    while first < stop:
        index, offset = divmod(first, block_tokens)
        count = min(stop - first, block_tokens - offset)
        found.append(Segment(start_row, start_row + count, offset, blocks[: index + 1]))
        start_row, first = start_row + count, first + count
    return found


def _keys(segment: Segment, window: int | None, block_tokens: int) -> Keys:
    own = len(segment.blocks) - 1
    first = 0
    if window is not None:
        # From the block's first token on, so that what a token sees does not depend on the step.
        first = max(0, own * block_tokens - window + 1) // block_tokens
    blocks = segment.blocks[first:]
    position, count = first * block_tokens, len(blocks) * block_tokens
    if all(after == before + 1 for before, after in pairwise(blocks)):
        return Keys(
            position, count, slice(blocks[0] * block_tokens, (blocks[-1] + 1) * block_tokens)
        )
    within = torch.arange(block_tokens)
    starts = torch.tensor(blocks)[:, None] * block_tokens
    return Keys(position, count, (starts + within).flatten())
