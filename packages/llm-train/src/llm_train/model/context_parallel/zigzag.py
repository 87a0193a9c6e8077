"""How a sequence is cut over context-parallel ranks so that causal work is equal.

Of 2·size chunks, rank r holds chunks r and 2·size - 1 - r: the early one sees few keys, the late
one many, and together every pair sees as many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRank:
    """Where a rank stands in its context-parallel group.

    `ulysses` consecutive ranks exchange heads for tokens; what one such group then holds is again
    a zigzag share, one of `ring_size`.
    """

    rank: int = 0
    size: int = 1
    ulysses: int = 1

    @property
    def ring_size(self) -> int:
        """Shares that travel round a ring."""
        return self.size // self.ulysses

    @property
    def ring_rank(self) -> int:
        """Which of these shares is this rank's."""
        return self.rank // self.ulysses

    @property
    def ulysses_rank(self) -> int:
        """Which part of the heads is this rank's."""
        return self.rank % self.ulysses

    def ring_peer(self, step: int) -> int:
        """The rank in the group that stands `step` places further round this rank's ring."""
        ring_rank = (self.ring_rank + step) % self.ring_size
        return ring_rank * self.ulysses + self.ulysses_rank

    def ulysses_peers(self) -> range:
        """The ranks in the group that share this rank's tokens by heads."""
        first = self.ring_rank * self.ulysses
        return range(first, first + self.ulysses)


def take(x: torch.Tensor, *, rank: int, size: int, dim: int = 0) -> torch.Tensor:
    """The share of `rank`: chunks r and 2·size - 1 - r of x along `dim`."""
    if size == 1:
        return x
    chunks = x.chunk(2 * size, dim)
    return torch.cat([chunks[rank], chunks[-1 - rank]], dim)


def join(shares: torch.Tensor) -> torch.Tensor:
    """Shares [n, t, …] of n consecutive ranks as one [n·t, …], early chunks then late ones.

    Of all ranks: the sequence in its order. Of some: the share of one rank among size / n.
    """
    early, late = shares.chunk(2, dim=1)
    return torch.cat([early, late.flip(0)]).flatten(0, 1)


def part(x: torch.Tensor, size: int) -> torch.Tensor:
    """The inverse of `join`: [size·t, …] as shares [size, t, …]."""
    early, late = x.reshape(2 * size, -1, *x.shape[1:]).chunk(2)
    return torch.cat([early, late.flip(0)], dim=1)
