"""torch's fused attention kernel for CPUs, and the calls of it for tokens alone in their texts.

A text that decodes has one token in a step, and a call for it costs as much to make as to compute.
So what the calls need - places of keys, masks - is worked out once a step for all layers of one
kind, and texts with as many keys whose blocks lie at even distances go in one call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model import masks
from llm_infer.model.cache import Keys, Pool, Step

# It takes rows in blocks of 32 or 64 up to 767 rows.
MAX_ROWS = 512
# The rows of a last, smaller block come out the same from 4 on, which `tile_rows` makes sure of.
_SMALL_TILE, _LARGE_TILE = 4, 8
_TRIED_KEYS, _TRIED_ROWS = (64, 320, 576, 1088), 64
# With more keys calls are long enough to not need it.
MAX_KEYS = masks.MOST_KEYS
# With 6 or 10 channels its rows differ by their place in a block; with any multiple of this they
# come out the same.
_CHANNELS = 16

# B texts, G query groups, T tokens, R queries of a group, S keys, D channels


def can_fuse(pool: Pool) -> bool:
    """Whether the kernel reads this pool; it wants keys and values of one width, laid out alike."""
    keys, values = pool.keys, pool.values
    return (
        keys.device.type == "cpu"
        and keys.dtype == torch.float32
        and (keys.shape, keys.stride()) == (values.shape, values.stride())
        and keys.shape[-1] % _CHANNELS == 0
    )


def attended(
    q_BGRD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, *, mask: Tensor, scale: float
) -> Tensor:
    """Mixed values [B, G, R, D]; `mask` [R, S] or [B, 1, R, S] is added to scores."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        q_BGRD, k_BGSD, v_BGSD, 0.0, False, attn_mask=mask, scale=scale
    )[0]


class Kernel(Protocol):
    """`attended`, or what is tried in its place."""

    def __call__(
        self, q_BGRD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, *, mask: Tensor, scale: float
    ) -> Tensor:
        """Mixed values [B, G, R, D]."""
        ...


@cache
def tile_rows(channels: int) -> int:
    """What calls are filled up to a multiple of."""
    return smallest_tile(attended, channels)


def smallest_tile(kernel: Kernel, channels: int) -> int:
    """The smaller tile if this CPU computes its rows as those of a whole block, else the larger."""
    numbers = torch.Generator().manual_seed(0)
    for count in _TRIED_KEYS:
        q, k, v = (
            torch.randn(1, 1, size, channels, generator=numbers)
            for size in (_TRIED_ROWS, count, count)
        )
        whole, *parts = (
            kernel(part, k, v, mask=torch.zeros(part.shape[2], count), scale=channels**-0.5)
            for part in (q, *q.split(_SMALL_TILE, dim=2))
        )
        if not torch.equal(torch.cat(parts, dim=2), whole):
            return _LARGE_TILE
    return _SMALL_TILE


@dataclass(frozen=True, slots=True)
class _Call:
    """Texts with as many keys: the first one's are `keys`, each next one's `distance` slots on."""

    texts: int
    keys: Keys
    distance: int
    mask: Tensor

    def view(self, pool_GSD: Tensor) -> "_View | Tensor":
        """Where their keys are in pools of that one's sizes: a view, or an index of slots."""
        where = self.keys.where
        if not isinstance(where, slice):
            return where
        groups, _, channels = pool_GSD.shape
        group, slot, channel = pool_GSD.stride()
        sizes = self.texts, groups, self.keys.count, channels
        return sizes, (self.distance * slot, group, slot, channel), where.start * slot


_View = tuple[tuple[int, ...], tuple[int, ...], int]


def _seen(pool_GSD: Tensor, view: _View | Tensor) -> Tensor:
    """What a call reads [B, G, S, D] of a pool."""
    if isinstance(view, Tensor):
        return pool_GSD.index_select(1, view)[None]
    sizes, strides, offset = view
    return pool_GSD.as_strided(sizes, strides, pool_GSD.storage_offset() + offset)


@dataclass(frozen=True, slots=True)
class Singles:
    """The calls for those first tokens of a step that are alone in their texts."""

    sizes: list[int]
    """Texts of each call."""
    views: Sequence[_View | Tensor]
    masks: Sequence[Tensor]
    count: int

    def mixed(self, q_TGRD: Tensor, pool: Pool, *, scale: float) -> Tensor:
        """Mixed values [count, G, R, D] of their queries."""
        queries = q_TGRD.shape[2]
        q_TGRD = F.pad(q_TGRD, (0, 0, 0, self.masks[0].shape[2] - queries))
        keys, values = pool.keys, pool.values
        calls = zip(q_TGRD.split_with_sizes(self.sizes), self.views, self.masks, strict=True)
        mixed = [
            attended(q_BGRD, _seen(keys, view), _seen(values, view), mask=mask, scale=scale)
            for q_BGRD, view, mask in calls
        ]
        return torch.cat(mixed)[:, :, :queries]


def singles(step: Step, pool: Pool, *, window: int | None, queries: int, tile: int) -> Singles:
    """Those of a step, the same object for all layers of one kind; of `tile_rows` rows each."""
    kind = window, queries, pool.keys.stride()
    if kind not in step.singles:
        lone = takewhile(
            lambda one: one[0].stop == one[0].start + 1 and one[1].count <= MAX_KEYS,
            zip(step.segments, step.keys_of(window), strict=True),
        )
        added = masks.added(step.block_tokens, window, queries)
        rows = queries + -queries % tile
        found = [
            (keys, added[(row := one.offset * queries) : row + rows, -keys.count :])
            for one, keys in lone
        ]
        calls = list(_calls(found))
        step.singles[kind] = Singles(
            sizes=[call.texts for call in calls],
            views=[call.view(pool.keys) for call in calls],
            masks=[call.mask for call in calls],
            count=len(found),
        )
    return step.singles[kind]


def _calls(found: Sequence[tuple[Keys, Tensor]]) -> Iterator[_Call]:
    """As few calls as go in the order of the texts."""
    first = 0
    while first < len(found):
        distance = (
            _distance(found[first][0], found[first + 1][0]) if first + 1 < len(found) else None
        )
        stop = first + 1
        while (
            distance is not None
            and stop < len(found)
            and _distance(found[stop - 1][0], found[stop][0]) == distance
        ):
            stop += 1
        mask = torch.stack([mask for _, mask in found[first:stop]])[:, None]
        yield _Call(stop - first, found[first][0], distance or 0, mask)
        first = stop


def _distance(keys: Keys, following: Keys) -> int | None:
    """Slots from one text's keys to another's; None where one call cannot be of both."""
    here, there = keys.where, following.where
    if keys.count != following.count or not isinstance(here, slice) or not isinstance(there, slice):
        return None
    return there.start - here.start if there.start >= here.start else None
