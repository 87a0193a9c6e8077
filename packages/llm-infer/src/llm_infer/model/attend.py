"""Softmax attention of one step over the cache, the same to the bit in whatever step a token is.

A query's result may depend on its position alone. So its keys always end at the end of its block,
and products are of at least `TILE_ROWS` and at most `MAX_ROWS` rows, between which a row comes out
the same (see `linear`). Rows added to fill a tile are those of the texts that follow; their results
are dropped.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.cache import Keys, Pool, Segment, Step
from llm_infer.model.linear import MAX_ROWS, TILE_ROWS
from llm_infer.model.rowwise import by_row

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


class Attend:
    """The computation for a fixed number of queries a group; keeps its masks."""

    def __init__(self, scores: Scores, *, queries: int, block_tokens: int) -> None:
        self._scores, self._queries, self._block_tokens = scores, queries, block_tokens
        self._masks: dict[torch.device, Tensor] = {}

    def __call__(self, q_TGRD: Tensor, pool: Pool, step: Step) -> Tensor:
        """Mixed values [T, G, queries, Dv] of queries [T, G, queries, D]."""
        tokens, groups, queries, dim = q_TGRD.shape
        rows = tokens * queries
        q_GRD = (q_TGRD * self._scores.scale).transpose(0, 1).reshape(groups, rows, dim)
        q_GRD = F.pad(q_GRD, (0, 0, 0, TILE_ROWS))
        values = pool.values
        out_GRD = q_GRD.new_empty(groups, rows, values.shape[-1])
        all_keys = step.keys_of(self._scores.window)
        for segment, keys in zip(step.segments, all_keys, strict=True):
            k_GSD, v_GSD = keys.of(pool.keys), keys.of(values)
            stop = segment.stop * queries
            for first in range(segment.start * queries, stop, MAX_ROWS):
                count = min(stop - first, MAX_ROWS)
                padded = count + (-count) % TILE_ROWS
                q = q_GRD[:, first : first + padded]
                weights = self._weights(q, k_GSD, keys, segment, first - segment.start * queries)
                out_GRD[:, first : first + count] = torch.bmm(weights, v_GSD)[:, :count]
        return out_GRD.view(groups, tokens, queries, -1).transpose(0, 1)

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
        """True where a query (row) of a block must not look: later keys, and those out of a window.

        Columns end with the block's last token; rows go on beyond the block, for filled-up tiles.
        """
        if device not in self._masks:
            size, window = self._block_tokens, self._scores.window
            width = size if window is None else size + -(-window // size) * size
            row = torch.arange(size + TILE_ROWS, device=device)[:, None]
            column = torch.arange(size - width, size, device=device)
            is_masked = column > row
            if window is not None:
                is_masked |= column <= row - window
            self._masks[device] = is_masked.repeat_interleave(self._queries, dim=0)
        return self._masks[device]


def _repeated(per_query_GR1: Tensor, rows: int, row: int) -> Tensor:
    """A number a query, for `rows` rows from row `row` of a segment on."""
    queries = per_query_GR1.shape[1]
    which = (torch.arange(row, row + rows, device=per_query_GR1.device)) % queries
    return per_query_GR1[:, which]
