"""Which rows of tokens are scored together: a pure function of the rows.

Floating-point sums depend on the shapes they are computed in. So that a score never depends on the
batch size, the number of ranks or where a run was interrupted, what is computed together is
decided here from the requests alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]

# A block: at most this many rows, and at most this many tokens after the shared ones.
MAX_ROWS = 32
MAX_TOKENS = 2048
# Computing shared tokens apart costs one more pass: it must save at least so many tokens.
_MIN_SHARED = 24
_MIN_SAVED = 96
# A row may shorten what its group shares, down to this fraction.
_KEPT = 0.6


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens the model reads; the first prediction that is asked for is after token `first`."""

    tokens: Tokens
    first: int


@dataclass(frozen=True, slots=True)
class Block:
    """Rows scored in one pass; the first `shared` tokens of all of them are the same."""

    shared: int
    rows: tuple[int, ...]


def plan(rows: Sequence[Row]) -> list[Block]:
    """Every row once. Rows that follow each other and begin alike share a computed beginning."""
    blocks: list[Block] = []
    loose: list[int] = []
    for shared, members in _groups(rows):
        if (len(members) - 1) * shared < _MIN_SAVED:
            loose += members
        else:
            blocks += [Block(shared, part) for part in _parts(rows, members, shared)]
    blocks += [Block(0, part) for part in _parts(rows, loose, 0)]
    return blocks


def common_prefix(first: Tokens, second: Tokens, limit: int) -> int:
    """How many of the first `limit` tokens are the same, by halving."""
    limit = min(limit, len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _groups(rows: Sequence[Row]) -> list[tuple[int, list[int]]]:
    groups: list[tuple[int, list[int]]] = []
    for number, row in enumerate(rows):
        if groups:
            shared, members = groups[-1]
            found = common_prefix(rows[members[0]].tokens, row.tokens, min(shared, row.first))
            needed = _MIN_SHARED if len(members) == 1 else max(_MIN_SHARED, _KEPT * shared)
            if found >= needed:
                groups[-1] = (found, [*members, number])
                continue
        groups.append((row.first, [number]))
    return groups


def _parts(rows: Sequence[Row], members: Sequence[int], shared: int) -> list[tuple[int, ...]]:
    """Members by falling length, cut where a padded block would grow too large."""
    ordered = sorted(members, key=lambda number: (-len(rows[number].tokens), number))
    parts: list[list[int]] = []
    room = 0
    for number in ordered:
        length = len(rows[number].tokens) - shared
        if room < 1:
            parts.append([])
            room = max(1, min(MAX_ROWS, MAX_TOKENS // length))
        parts[-1].append(number)
        room -= 1
    return [tuple(part) for part in parts]
