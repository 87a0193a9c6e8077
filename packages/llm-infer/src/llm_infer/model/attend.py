"""Softmax attention of one step over the cache, the same to the bit in whatever step a token is.

A query's result may depend on its position alone. So its keys always end at the end of its block,
and products are of at least `TILE_ROWS` and at most `MAX_ROWS` rows, between which a row comes out
the same (see `linear`). Rows added to fill a tile are those of the texts that follow; their results
are dropped.

torch's fused kernel does in one call what takes ten otherwise, where it can (see `fused`): it
decides by the number of keys, which is a matter of the position, too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.compiled.library import Library
from llm_infer.kernels import Kernels
from llm_infer.model import fused, masks
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

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but a scale and a mask."""
        return self.softcap is None and self.sinks is None and self.slopes is None


class Attend:
    """The computation for a fixed number of queries a group; keeps its masks."""

    def __init__(
        self, scores: Scores, kernels: Kernels, *, queries: int, block_tokens: int
    ) -> None:
        self._scores, self._queries, self._block_tokens = scores, queries, block_tokens
        self._compiled = kernels.functions if isinstance(kernels, CompiledKernels) else None
        self._masks: dict[torch.device, Tensor] = {}

    def __call__(self, q_TGRD: Tensor, pool: Pool, step: Step) -> Tensor:
        """Mixed values [T, G, queries, Dv] of queries [T, G, queries, D]."""
        if step.tables is not None:
            return self._one_a_text(q_TGRD, pool, step.positions, step.tables)
        if self._compiled is not None and self._compiled.can_attend(
            pool.keys, pool.values, block_tokens=self._block_tokens
        ):
            return self._by_compiled(self._compiled, q_TGRD, pool, step)
        can_fuse = self._scores.is_plain and fused.can_fuse(pool)
        if not can_fuse:
            return self._by_segment(q_TGRD, pool, step, first=0, can_fuse=False)
        tile = fused.tile_rows(q_TGRD.shape[-1])
        singles = fused.singles(
            step, pool, window=self._scores.window, queries=self._queries, tile=tile
        )
        count = singles.count
        if not count:
            return self._by_segment(q_TGRD, pool, step, first=0, can_fuse=True)
        mixed_TGRD = singles.mixed(q_TGRD[:count], pool, scale=self._scores.scale)
        if count == len(q_TGRD):
            return mixed_TGRD
        others_TGRD = self._by_segment(q_TGRD, pool, step, first=count, can_fuse=True)
        return torch.cat([mixed_TGRD, others_TGRD])

    def _by_compiled(self, functions: Library, q_TGRD: Tensor, pool: Pool, step: Step) -> Tensor:
        facts = self._scores
        return functions.attention(
            q_TGRD,
            pool.keys,
            pool.values,
            *step.tables_of_segments(),
            block_tokens=self._block_tokens,
            scale=facts.scale,
            softcap=facts.softcap,
            window=facts.window,
            sinks=facts.sinks,
            slopes=facts.slopes,
        )

    def _by_segment(
        self, q_TGRD: Tensor, pool: Pool, step: Step, *, first: int, can_fuse: bool
    ) -> Tensor:
        """Mixed values of the tokens from `first` on, where a segment begins."""
        tokens, groups, queries, dim = q_TGRD.shape
        q_GRD = q_TGRD.transpose(0, 1).reshape(groups, tokens * queries, dim)
        q_GRD = F.pad(q_GRD, (0, 0, 0, TILE_ROWS))
        out_GRD = q_GRD.new_empty(groups, tokens * queries, pool.values.shape[-1])
        keyed = zip(step.segments, step.keys_of(self._scores.window), strict=True)
        for segment, keys in keyed:
            if segment.start < first:
                continue
            start, stop = segment.start * queries, segment.stop * queries
            mix = self._fused if can_fuse and keys.count <= fused.MAX_KEYS else self._mixed
            mix(q_GRD, pool, keys, segment, out_GRD[:, start:stop])
        return out_GRD.view(groups, tokens, queries, -1).transpose(0, 1)[first:]

    def _fused(
        self, q_GRD: Tensor, pool: Pool, keys: Keys, segment: Segment, out_GRD: Tensor
    ) -> None:
        """Mixed values of a segment's queries into `out_GRD`, by torch's kernel for CPUs."""
        k_1GSD, v_1GSD = keys.of(pool.keys)[None], keys.of(pool.values)[None]
        added = masks.added(self._block_tokens, self._scores.window, self._queries)
        added = added[segment.offset * self._queries :, -keys.count :]
        first, rows = segment.start * self._queries, out_GRD.shape[1]
        for row in range(0, rows, fused.MAX_ROWS):
            count = min(rows - row, fused.MAX_ROWS)
            padded = count + (-count) % fused.tile_rows(q_GRD.shape[-1])
            mixed_1GRD = fused.attended(
                q_GRD[None, :, first + row : first + row + padded],
                k_1GSD,
                v_1GSD,
                mask=added[row : row + padded],
                scale=self._scores.scale,
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
        facts = self._scores
        scores = torch.bmm(q_GRD * facts.scale, k_GSD.transpose(1, 2))
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
        """See `masks.is_masked`."""
        if device not in self._masks:
            made = masks.is_masked(self._block_tokens, self._scores.window, self._queries)
            self._masks[device] = made.to(device)
        return self._masks[device]


def _repeated(per_query_GR1: Tensor, rows: int, row: int) -> Tensor:
    """A number a query, for `rows` rows from row `row` of a segment on."""
    queries = per_query_GR1.shape[1]
    which = (torch.arange(row, row + rows, device=per_query_GR1.device)) % queries
    return per_query_GR1[:, which]
