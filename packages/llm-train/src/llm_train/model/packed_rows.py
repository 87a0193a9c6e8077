"""Rows that hold several documents: attention and positions restart at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Where documents start in each row of a micro-batch, the first at 0; rows are `tokens` long.

    Travels as megatron-core's `packed_seq_params`, of which GPTModel asks the other names.
    """

    starts: tuple[tuple[int, ...], ...]
    tokens: int

    qkv_format: ClassVar[str] = "bshd"
    cp_group: ClassVar[None] = None

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(max(lengths) for lengths in self._lengths())

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where documents start when the rows lie one after another, and where the last ends."""
        rows = enumerate(self.starts)
        starts = (row * self.tokens + start for row, many in rows for start in many)
        return (*starts, len(self.starts) * self.tokens)

    def first_places(self) -> torch.Tensor:
        """[B, T] on the host: where the document of each token starts."""
        rows = zip(self.starts, self._lengths(), strict=True)
        return torch.stack(
            [torch.tensor(row).repeat_interleave(torch.tensor(count)) for row, count in rows]
        )

    def _lengths(self) -> list[list[int]]:
        ends = ((*row[1:], self.tokens) for row in self.starts)
        return [
            [end - start for start, end in zip(row, stop, strict=True)]
            for row, stop in zip(self.starts, ends, strict=True)
        ]

    @property
    def max_seqlen_q(self) -> int:
        """How many positions the rotary table needs."""
        return self.tokens

    @property
    def max_seqlen_kv(self) -> int:
        """The same: a row attends to itself."""
        return self.tokens


def packed_rows(position_ids: torch.Tensor) -> PackedRows:
    """The documents of whole rows [B, T], on the host: one starts wherever positions do."""
    starts = [tuple(row.nonzero().flatten().tolist()) for row in position_ids == 0]
    return PackedRows(starts=tuple(starts), tokens=position_ids.shape[1])


def sequence_tokens(position_ids: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """[B, T] int64: how many tokens the document of each has; `padding` [B, T] counts for none."""
    numbers = (position_ids == 0).cumsum(1)
    counted = torch.ones_like(numbers) if padding is None else (~padding).long()
    totals = torch.zeros(numbers.shape[0], numbers.shape[1] + 1, dtype=torch.int64)
    return totals.scatter_add_(1, numbers, counted).gather(1, numbers)
