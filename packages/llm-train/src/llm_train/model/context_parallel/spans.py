"""Which runs of queries see which runs of keys, so that nothing hidden is computed.

Tokens are told by their place in the whole sequence. A pair is seen whole, along its diagonal, or
in part (a window cuts it); all other pairs are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from llm_train.model.context_parallel.zigzag import ContextRank


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens: `length` of them from row `start` of a tensor, place `first` on."""

    start: int
    first: int
    length: int

    @property
    def rows(self) -> slice:
        """Where the tokens lie in their tensor."""
        return slice(self.start, self.start + self.length)

    @property
    def end(self) -> int:
        """The place after the last token."""
        return self.first + self.length


class Sight(StrEnum):
    """How much of a run of keys a run of queries sees."""

    WHOLE = "whole"
    DIAGONAL = "diagonal"
    PART = "part"


@dataclass(frozen=True, slots=True)
class Pair:
    """Queries that see keys; in one row of the batch, or in all of them (None)."""

    queries: Span
    keys: Span
    sight: Sight
    row: int | None = None

    @property
    def batch(self) -> slice:
        """The rows of the batch."""
        return slice(None) if self.row is None else slice(self.row, self.row + 1)


def held(tokens: int, *, ring_rank: int, ring_size: int) -> tuple[Span, ...]:
    """The spans of one zigzag share of `tokens`."""
    if ring_size == 1:
        return (Span(0, 0, tokens),)
    chunk = tokens // (2 * ring_size)
    late = 2 * ring_size - 1 - ring_rank
    return Span(0, ring_rank * chunk, chunk), Span(chunk, late * chunk, chunk)


@lru_cache(maxsize=256)
def plan(
    queries: tuple[Span, ...],
    keys: tuple[Span, ...],
    *,
    window: int | None,
    tile: int | None,
    starts: tuple[tuple[int, ...], ...] | None,
) -> tuple[Pair, ...]:
    """All pairs of which something is seen.

    `window`: tokens a query sees, itself included. `tile`: no span is longer, so that scores stay
    small; None lets whole pairs grow together. `starts`: where documents start in each row of the
    batch; a query sees its own document only.
    """
    if starts is None:
        return tuple(_pairs(queries, keys, window=window, tile=tile, row=None))
    found: list[Pair] = []
    for row, places in enumerate(starts):
        ends = [*places[1:], max(span.end for span in (*queries, *keys))]
        for first, end in zip(places, ends, strict=True):
            of_document = (tuple(_within(spans, first, end)) for spans in (queries, keys))
            found += _pairs(*of_document, window=window, tile=tile, row=row)
    return tuple(found)


def ring_plans(
    tokens: int,
    place: ContextRank,
    *,
    window: int | None,
    tile: int | None,
    starts: tuple[tuple[int, ...], ...] | None,
) -> list[tuple[Pair, ...]]:
    """The pairs of each step round the ring: step s sees the keys of the rank s places before."""
    size = place.ring_size
    shares = [held(tokens, ring_rank=rank, ring_size=size) for rank in range(size)]
    return [
        plan(
            shares[place.ring_rank],
            shares[(place.ring_rank - step) % size],
            window=window,
            tile=tile,
            starts=starts,
        )
        for step in range(size)
    ]


def _pairs(
    queries: Sequence[Span],
    keys: Sequence[Span],
    *,
    window: int | None,
    tile: int | None,
    row: int | None,
) -> list[Pair]:
    edges = {edge for span in (*queries, *keys) for edge in (span.first, span.end)}
    if tile is not None:
        edges |= {edge for span in (*queries, *keys) for edge in range(0, span.end, tile)}
    cut_queries, cut_keys = (list(_cut(spans, sorted(edges))) for spans in (queries, keys))
    found = [
        Pair(query, key, sight, row)
        for query in cut_queries
        for key in cut_keys
        if (sight := _sight(query, key, window)) is not None
    ]
    return found if tile is not None else _grown(found)


def _sight(query: Span, key: Span, window: int | None) -> Sight | None:
    """How the spans, which are equal or do not overlap, see each other; None = not at all."""
    nearest, farthest = query.first - key.end + 1, query.end - 1 - key.first
    if farthest < 0 or (window is not None and nearest >= window):
        return None
    if window is not None and farthest >= window:
        return Sight.PART
    return Sight.DIAGONAL if query.first == key.first else Sight.WHOLE


def _cut(spans: Iterable[Span], edges: Sequence[int]) -> Iterator[Span]:
    """The spans in pieces that no edge lies within."""
    for span in spans:
        inside = [edge for edge in edges if span.first < edge < span.end]
        for first, end in zip([span.first, *inside], [*inside, span.end], strict=True):
            yield Span(span.start + first - span.first, first, end - first)


def _within(spans: Iterable[Span], first: int, end: int) -> Iterator[Span]:
    """What of the spans lies at places first ≤ place < end."""
    for span in spans:
        begin, stop = max(span.first, first), min(span.end, end)
        if begin < stop:
            yield Span(span.start + begin - span.first, begin, stop - begin)


def _grown(pairs: Sequence[Pair]) -> list[Pair]:
    """Whole pairs that lie side by side as one: fewer, larger products."""
    keys_of: dict[Span, list[Span]] = {}
    for pair in pairs:
        if pair.sight is Sight.WHOLE:
            keys_of.setdefault(pair.queries, []).append(pair.keys)
    queries_of: dict[Span, list[Span]] = {}
    for queries, keys in keys_of.items():
        for united in _united(keys):
            queries_of.setdefault(united, []).append(queries)
    grown = [
        Pair(united, keys, Sight.WHOLE, pairs[0].row)
        for keys, queries in queries_of.items()
        for united in _united(queries)
    ]
    return [*(pair for pair in pairs if pair.sight is not Sight.WHOLE), *grown]


def _united(spans: Iterable[Span]) -> list[Span]:
    """Spans whose rows follow each other as one; its places need not be consecutive."""
    united: list[Span] = []
    for span in spans:
        if united and united[-1].rows.stop == span.start:
            united[-1] = replace(united[-1], length=united[-1].length + span.length)
        else:
            united.append(span)
    return united
