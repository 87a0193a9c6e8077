"""Softmax attention of one step over the cache, the same to the bit in whatever step a token is.

A query's result may depend on its position alone. So its keys always end at the end of its block,
and products are of at least `TILE_ROWS` and at most `MAX_ROWS` rows, between which a row comes out
the same (see `linear`). Rows added to fill a tile are those of the texts that follow; their results
are dropped.

torch's fused kernel does in one call what takes ten otherwise, where it can: it decides by the
number of keys, which is a matter of the position, too.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.cache import Keys, Pool, Segment, Step
from llm_infer.model.linear import MAX_ROWS, TILE_ROWS
from llm_infer.model.rowwise import by_row

# torch's fused kernel takes rows in blocks of 32 or 64 up to 767 rows. The rows of a last, smaller
# block come out the same from 4 on.
_FUSED_TILE_ROWS = 8
_FUSED_MAX_ROWS = 512
# With 6 or 10 channels its rows differ by their place in a block; with any multiple of this they
# come out the same.
_FUSED_CHANNELS = 16
# Its mask has all keys. With more of them calls are long enough to not need it.
_FUSED_KEYS = 2048

# G query groups, T tokens, R queries of a group (a token's side by side), S keys, D channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What is done to scores beside the softmax."""

    scale: float
    softcap: float | None = None
    window: int | None = None
    sinks: Tensor | None = None
    """[G, 1, R]: a logit a head that takes its part of the softmax and gives nothing."""
    slopes: Tensor | None = None
    """[G, R, 1]. ALiBi: what a head adds for each position of a key."""

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but a scale and a mask."""
        return self.softcap is None and self.sinks is None and self.slopes is None


class Attend:
    """The computation for a fixed number of queries a group; keeps its masks."""

    def __init__(self, scores: Scores, *, queries: int, block_tokens: int) -> None:
        self._scores, self._queries, self._block_tokens = scores, queries, block_tokens
        self._masks: dict[torch.device, Tensor] = {}

    def __call__(self, q_TGRD: Tensor, pool: Pool, step: Step) -> Tensor:
        """Mixed values [T, G, queries, Dv] of queries [T, G, queries, D]."""
        if step.tables is not None:
            return self._one_a_text(q_TGRD, pool, step.positions, step.tables)
        tokens, groups, queries, dim = q_TGRD.shape
        rows = tokens * queries
        q_GRD = (q_TGRD * self._scores.scale).transpose(0, 1).reshape(groups, rows, dim)
        q_GRD = F.pad(q_GRD, (0, 0, 0, TILE_ROWS))
        values = pool.values
        out_GRD = q_GRD.new_empty(groups, rows, values.shape[-1])
        all_keys = step.keys_of(self._scores.window)
        for segment, keys in zip(step.segments, all_keys, strict=True):
            start, stop = segment.start * queries, segment.stop * queries
            mix = self._fused if self._can_fuse(pool, keys) else self._mixed
            mix(q_GRD, pool, keys, segment, out_GRD[:, start:stop])
        return out_GRD.view(groups, tokens, queries, -1).transpose(0, 1)

    def _can_fuse(self, pool: Pool, keys: Keys) -> bool:
        """Whether torch's fused kernel does this; it wants keys and values of one width."""
        k_GSD = pool.keys
        return (
            self._scores.is_plain
            and k_GSD.device.type == "cpu"
            and k_GSD.dtype == torch.float32
            and k_GSD.shape[-1] == pool.values.shape[-1]
            and k_GSD.shape[-1] % _FUSED_CHANNELS == 0
            and keys.count <= _FUSED_KEYS
        )

    def _fused(
        self, q_GRD: Tensor, pool: Pool, keys: Keys, segment: Segment, out_GRD: Tensor
    ) -> None:
        """Mixed values of a segment's queries into `out_GRD`, by torch's kernel for CPUs."""
        k_1GSD, v_1GSD = keys.of(pool.keys)[None], keys.of(pool.values)[None]
        mask = _added_mask(self._block_tokens, self._scores.window, self._queries)
        mask = mask[segment.offset * self._queries :, _FUSED_KEYS - keys.count :]
        first, rows = segment.start * self._queries, out_GRD.shape[1]
        for row in range(0, rows, _FUSED_MAX_ROWS):
            count = min(rows - row, _FUSED_MAX_ROWS)
            padded = count + (-count) % _FUSED_TILE_ROWS
            mixed_1GRD, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q_GRD[None, :, first + row : first + row + padded],
                k_1GSD,
                v_1GSD,
                attn_mask=mask[row : row + padded],
                scale=1.0,
            )
            out_GRD[:, row : row + count] = mixed_1GRD[0, :, :count]

    def _mixed(
        self, q_GRD: Tensor, pool: Pool, keys: Keys, segment: Segment, out_GRD: Tensor
    ) -> None:
        """Mixed values of a segment's queries into `out_GRD`, step by step."""
        k_GSD, v_GSD = keys.of(pool.keys), keys.of(pool.values)
        first, rows = segment.start * self._queries, out_GRD.shape[1]
        for row in range(0, rows, MAX_ROWS):
            count = min(rows - row, MAX_ROWS)
            padded = count + (-count) % TILE_ROWS
            q = q_GRD[:, first + row : first + row + padded]
            weights = self._weights(q, k_GSD, keys, segment, row)
            out_GRD[:, row : row + count] = torch.bmm(weights, v_GSD)[:, :count]

    def _one_a_text(
        self, q_TGRD: Tensor, pool: Pool, positions_T: Tensor, tables_TN: Tensor
    ) -> Tensor:
        """Mixed values of tokens of different texts, by operators whose shapes and tensors do not
        depend on how long the texts are. Rows may differ from the others' in their last bits.
        """
        facts, size = self._scores, self._block_tokens
        within = torch.arange(size, device=tables_TN.device)
        slots_TS = (tables_TN[:, :, None] * size + within).flatten(1)
        place_S = torch.arange(slots_TS.shape[1], device=tables_TN.device)
        is_masked_TS = place_S > positions_T[:, None]
        if facts.window is not None:
            is_masked_TS |= place_S <= positions_T[:, None] - facts.window
        k_TGSD = pool.keys[:, slots_TS].transpose(0, 1)
        # What was never written may be NaN, which a weight of 0 does not take away.
        v_TGSD = pool.values[:, slots_TS].transpose(0, 1)
        v_TGSD = v_TGSD.masked_fill(is_masked_TS[:, None, :, None], 0.0)
        scores = (q_TGRD * facts.scale) @ k_TGSD.transpose(2, 3)
        if facts.softcap is not None:
            scores = torch.tanh(scores / facts.softcap) * facts.softcap
        if facts.slopes is not None:
            scores = scores + facts.slopes * place_S
        scores = scores.masked_fill(is_masked_TS[:, None, None], -math.inf)
        if facts.sinks is None:
            return scores.softmax(-1, dtype=torch.float32).to(q_TGRD.dtype) @ v_TGSD
        sinks = facts.sinks.transpose(1, 2).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
        return weights.softmax(-1, dtype=torch.float32)[..., :-1].to(q_TGRD.dtype) @ v_TGSD

    def _weights(
        self, q_GRD: Tensor, k_GSD: Tensor, keys: Keys, segment: Segment, row: int
    ) -> Tensor:
        """Softmax weights [G, R, S]; `row` counts queries from the segment's first token."""
        scores, facts = torch.bmm(q_GRD, k_GSD.transpose(1, 2)), self._scores
        num_keys, rows = k_GSD.shape[1], q_GRD.shape[1]
        if facts.softcap is not None:
            flat = by_row(torch.tanh, scores.flatten(0, 1) / facts.softcap)
            scores = (flat * facts.softcap).view(scores.shape)
        if facts.slopes is not None:
            positions = torch.arange(num_keys, device=scores.device) + keys.first_position
            scores = scores + _repeated(facts.slopes, rows, row) * positions
        first = segment.offset * self._queries + row
        masked = self._mask(scores.device)[first : first + rows]
        width = min(num_keys, masked.shape[1])
        scores[..., num_keys - width :].masked_fill_(
            masked[:, masked.shape[1] - width :], -math.inf
        )
        if facts.sinks is None:
            return scores.softmax(-1, dtype=torch.float32).to(q_GRD.dtype)
        sinks = _repeated(facts.sinks.transpose(1, 2), rows, row)
        weights = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
        return weights.softmax(-1, dtype=torch.float32)[..., :-1].to(q_GRD.dtype)

    def _mask(self, device: torch.device) -> Tensor:
        """See `_is_masked`."""
        if device not in self._masks:
            made = _is_masked(self._block_tokens, self._scores.window, self._queries)
            self._masks[device] = made.to(device)
        return self._masks[device]


def _is_masked(block_tokens: int, window: int | None, queries: int) -> Tensor:
    """True where a query (row) of a block must not look: later keys, and those out of a window.

    Columns end with the block's last token; rows go on beyond the block, for filled-up tiles.
    """
    width = block_tokens
    if window is not None:
        width += -(-window // block_tokens) * block_tokens
    row = torch.arange(block_tokens + TILE_ROWS)[:, None]
    column = torch.arange(block_tokens - width, block_tokens)
    is_masked = column > row
    if window is not None:
        is_masked |= column <= row - window
    return is_masked.repeat_interleave(queries, dim=0)


# The same in all layers of one kind, of which a model has few.
@lru_cache(maxsize=4)
def _added_mask(block_tokens: int, window: int | None, queries: int) -> Tensor:
    """Added to scores of the `_FUSED_KEYS` keys up to the end of a block: 0 or minus infinity."""
    is_masked = _is_masked(block_tokens, window, queries)[:, -_FUSED_KEYS:]
    added = torch.zeros(len(is_masked), _FUSED_KEYS)
    return added.masked_fill_(F.pad(is_masked, (_FUSED_KEYS - is_masked.shape[1], 0)), -math.inf)


def _repeated(per_query_GR1: Tensor, rows: int, row: int) -> Tensor:
    """A number a query, for `rows` rows from row `row` of a segment on."""
    queries = per_query_GR1.shape[1]
    which = (torch.arange(row, row + rows, device=per_query_GR1.device)) % queries
    return per_query_GR1[:, which]
