"""Keys and values of rows that are continued together, written in place.

Rows stand right-aligned: what each has read ends at the same column, so one more token of every
row is one more column. A row that ends gives its place to the last one; new rows take places
behind that. Columns before the longest row are never read.

S places, n of them taken, H key-value heads, C columns, D head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# Columns beyond those of the longest row: so many steps before all rows move back to the left.
_SLACK = 64


@dataclass(slots=True)
class _Span:
    """The places and columns that hold rows; the next token goes to column `end`."""

    rows: int
    start: int
    end: int


class Slots(Cache):
    """A cache of `places` rows of at most `longest` tokens, of which `longest_prompt` on entry."""

    def __init__(self, places: int, *, longest: int, longest_prompt: int) -> None:
        super().__init__(layers=[])
        self._places = places
        self._columns = longest + _SLACK
        self._first_end = longest_prompt
        self._span = _Span(0, longest_prompt, longest_prompt)
        self.lengths: list[int] = []

    def admit(self, read: Any, lengths: Sequence[int]) -> None:
        """Take rows from another cache, in which row r holds `lengths[r]` tokens, then padding."""
        if not self.layers:
            self.layers = [self._new_layer(layer) for layer in read.layers]
        span = self._span
        for own, layer in zip(self.layers, read.layers, strict=True):
            for place, length in enumerate(lengths):
                columns = slice(span.end - length, span.end)
                own.keys[span.rows + place, :, columns] = layer.keys[place, :, :length]
                own.values[span.rows + place, :, columns] = layer.values[place, :, :length]
        self.lengths += lengths
        self._fit()

    def drop(self, place: int) -> None:
        """Free a place; the row of the last place moves into it."""
        last = len(self.lengths) - 1
        if place != last:
            columns = slice(self._span.end - self.lengths[last], self._span.end)
            for layer in self.layers:
                for states in (layer.keys, layer.values):
                    states[place, :, columns] = states[last, :, columns]
        self.lengths[place] = self.lengths[last]
        self.lengths.pop()
        self._fit()

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Mask n×columns and positions n×1 for one more token of every row."""
        lengths_n1 = torch.tensor(self.lengths, device=device)[:, None]
        width = self._span.end - self._span.start + 1
        columns_C = torch.arange(width, 0, -1, device=device)
        return {
            "attention_mask": (columns_C <= lengths_n1 + 1).long(),
            "position_ids": lengths_n1,
        }

    def advance(self) -> None:
        """Every row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]
        self._span.end += 1
        if self._span.end == self._columns:
            self._move_left()
        self._fit()

    def _fit(self) -> None:
        self._span.rows = len(self.lengths)
        self._span.start = self._span.end - max(self.lengths, default=0)

    def _move_left(self) -> None:
        """To the first columns in which the rows, and any prompt still to come, fit."""
        self._fit()
        span = self._span
        end = max(self._first_end, span.end - span.start)
        kept, target = slice(span.start, span.end), slice(end - span.end + span.start, end)
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[: span.rows, :, target] = states[: span.rows, :, kept].clone()
        span.end = end

    def _new_layer(self, read: Any) -> "_Layer":
        layer = _Layer(self._span)
        for name in ("keys", "values"):
            states: Tensor = getattr(read, name)
            shape = (self._places, states.shape[1], self._columns, states.shape[3])
            # Zeros: a masked column must hold a number, for zero times NaN is NaN.
            setattr(layer, name, states.new_zeros(shape))
        layer.is_initialized = True
        return layer


class _Layer(CacheLayerMixin):
    """One layer's keys and values, S×H×C×D each; all layers look at one span."""

    is_sliding = False

    def __init__(self, span: _Span) -> None:
        super().__init__()
        self.keys: Any
        self.values: Any
        self._span = span

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: `Slots.admit` makes the tensors."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write n×H×1×D at the next column; what attention reads, as views."""
        rows, start, end = self._span.rows, self._span.start, self._span.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, start : end + 1], self.values[:rows, :, start : end + 1]

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        """Columns that `update` gives, and at which of them the first stands."""
        return self.get_seq_length() + 1, 0

    def get_seq_length(self) -> int:
        """Columns before the next token."""
        return self._span.end - self._span.start

    def get_max_length(self) -> int:
        """No maximum that a model need know of."""
        return -1
