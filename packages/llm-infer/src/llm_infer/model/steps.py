"""The tokens of one forward put together from parts of texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llm_infer.model.cache import (
    CacheShape,
    IndexedPool,
    LayerPool,
    Pool,
    Segment,
    StatePool,
    StateShape,
    Step,
    segments,
)

if TYPE_CHECKING:
    from llm_infer.model.decoder import Decoder

# float32 numbers of 64 bytes.
_VECTOR = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tokens of one text from position `first` on; `blocks` are the text's, enough for them."""

    tokens: Sequence[int]
    first: int
    blocks: Sequence[int]
    wants_logits: bool
    is_long: bool = False
    """Whether the text uses the rope table for long ones."""
    num_prompt: int = 0
    """Tokens that the text began with, by which dynamic rope scaling turns it."""


def make_step(
    parts: Sequence[Part],
    *,
    block_tokens: int,
    decoder: "Decoder",
    rows: Sequence[int] | None = None,
) -> Step:
    """One step of all parts, its tensors on the decoder's device; for `rows` see `ModelRunner`."""
    tokens, positions, slots, variants = list[int](), list[int](), list[int](), list[int]()
    last_row, cut = dict[int, int](), list[Segment]()
    order = range(len(parts)) if rows is not None else _order(parts)
    for index in order:
        part = parts[index]
        stop = part.first + len(part.tokens)
        cut += segments(len(tokens), part.first, stop, part.blocks, block_tokens)
        tokens += part.tokens
        positions += range(part.first, stop)
        for position in range(part.first, stop):
            block, offset = divmod(position, block_tokens)
            slots.append(part.blocks[block] * block_tokens + offset)
        variants += [variant(part, decoder)] * len(part.tokens)
        last_row[index] = len(tokens) - 1
    if rows is None:
        rows = [last_row[index] for index, part in enumerate(parts) if part.wants_logits]

    def on_device(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=decoder.device)

    return Step(
        tokens=on_device(tokens),
        positions=on_device(positions),
        slots=on_device(slots),
        variants=on_device(variants) if has_variants(decoder) else None,
        segments=tuple(cut),
        last_rows=on_device(rows),
        block_tokens=block_tokens,
    )


def has_variants(decoder: "Decoder") -> bool:
    """Whether texts of other lengths rotate otherwise."""
    return decoder.short_length is not None or decoder.grows_from is not None


def variant(part: Part, decoder: "Decoder") -> int:
    """Which rotation a part has, see `Step.variants`."""
    return int(part.is_long) if decoder.grows_from is None else part.num_prompt


def _order(parts: Sequence[Part]) -> list[int]:
    """Single tokens first, those with as many blocks side by side (see `fused.Singles`)."""

    def place(index: int) -> tuple[bool, int, int]:
        part = parts[index]
        return len(part.tokens) > 1, len(part.blocks), part.blocks[0]

    return sorted(range(len(parts)), key=place)


def clear_opened(
    parts: Sequence[Part], pools: Sequence[LayerPool | None], *, block_tokens: int
) -> None:
    """Clear each block that parts begin and do not fill (see `Pool.clear`)."""
    for part in parts:
        stop = part.first + len(part.tokens)
        opened = stop // block_tokens
        if part.first <= opened * block_tokens < stop:
            start = part.blocks[opened] * block_tokens
            for pool in pools:
                if pool is not None:
                    pool.clear(start, start + block_tokens)


def make_pools(decoder: "Decoder", *, num_blocks: int, block_tokens: int) -> list[LayerPool | None]:
    """A pool for each layer that keeps something of a text.

    It holds anything until it is written (see `Pool.clear`): so a CPU gives it no memory before.
    """
    return [
        None if shape is None else _pool(shape, decoder, num_blocks, block_tokens)
        for shape in decoder.cache_shapes
    ]


def _pool(
    shape: CacheShape | StateShape, decoder: "Decoder", num_blocks: int, block_tokens: int
) -> LayerPool:
    def empty(*sizes: int, dtype: torch.dtype = decoder.dtype) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device=decoder.device)

    if isinstance(shape, StateShape):
        # Each state starts where a vector may.
        numbers = -(-math.prod(shape.state) // _VECTOR) * _VECTOR
        states = empty(num_blocks, numbers, dtype=torch.float32)
        inputs = empty(num_blocks, shape.rows(block_tokens), shape.channels)
        return StatePool(states, inputs, shape, block_tokens=block_tokens)
    slots = num_blocks * block_tokens
    values = None if shape.is_one else empty(shape.groups, slots, shape.value_dim)
    kept = Pool(empty(shape.groups, slots, shape.key_dim), values, shape.value_dim)
    if not shape.index_dim:
        return kept
    return IndexedPool(kept, Pool(empty(1, slots, shape.index_dim), None, 0))
