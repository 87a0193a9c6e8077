"""Bytes that gated delta nets and Mamba2 mixers keep for backward (llm_train.model.gdn, mamba).

Their recurrences (llm_train.model.recurrence) are torch's own operators in fp32, every product of
which keeps its factors: matrices of chunk by chunk a head, and copies of keys a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.arch import Gdn, Mamba2
from llm_train.plan.shapes import FP32, Shapes

CHUNK = 64  # llm_train.model.recurrence.CHUNK


@dataclass(frozen=True, slots=True)
class _Chunked:
    """Sequences filled up to whole chunks: `tokens` with the filling, in `number` chunks."""

    tokens: int
    number: int
    size: int

    @classmethod
    def of(cls, shapes: Shapes, size: int) -> _Chunked:
        """All rows of a micro-batch."""
        per_row = -(-shapes.seq_length // size)
        number = shapes.tokens // shapes.seq_length * per_row
        return cls(number * size, number, size)


def delta_net_bytes(one: Gdn, shapes: Shapes, *, is_again: bool) -> float:
    """Of a gated delta net; `is_again`: backward computes its recurrence again."""
    tokens, width = shapes.tokens, shapes.width
    heads, groups = one.value_heads / shapes.tp, one.key_heads / shapes.tp
    keys, values = groups * one.key_head_dim, heads * one.value_head_dim
    mixed, projected = 2 * keys + values, 2 * keys + 2 * values + 2 * heads
    # Into and out of the convolution; its activation; the lengths of queries and keys.
    kept = tokens * (2 * mixed * width + 2 * groups * FP32)
    kept += tokens * (mixed * width if width == FP32 else 2 * keys * FP32)
    kept += tokens * 3 * heads * FP32  # rates and steps on their way
    chunked = _Chunked.of(shapes, min(CHUNK, 1 << (shapes.seq_length - 1).bit_length()))
    if is_again:
        values_kept = 0 if width == FP32 else mixed * width
        kept += tokens * (2 * keys + 2 * heads) * FP32 + tokens * values_kept
    else:
        products = 6 * heads * chunked.size + 4 * keys + 3 * heads
        by_head = heads * (4 * one.value_head_dim + 7 * one.key_head_dim)
        states = chunked.number * 2 * heads * one.key_head_dim * one.value_head_dim
        kept += (chunked.tokens * (products + by_head) + states) * FP32
    # The output, and in the norm: normed, weighted, the gate and its activation, and the product.
    kept += (chunked.tokens * values + tokens * heads) * FP32
    kept += tokens * values * ((2 if shapes.has_kernels else 3) * FP32 + width)
    return kept + tokens * (projected * width if width == FP32 else values * FP32)


def state_space_bytes(one: Mamba2, shapes: Shapes, *, is_again: bool) -> float:
    """Of a Mamba2 mixer; `is_again`: backward computes its scan again."""
    tokens, width = shapes.tokens, shapes.width
    heads, groups = one.heads / shapes.tp, one.groups / shapes.tp
    inner, state = heads * one.head_dim, groups * one.state_dim
    mixed, projected = inner + 2 * state, 2 * inner + 2 * state + heads
    # Into, out of, and the activation of the convolution, of which fp32 keeps all as the input x.
    kept = tokens * (2 * mixed * width + heads * FP32)
    kept += tokens * (mixed * width if width == FP32 else inner * FP32)
    chunked = _Chunked.of(shapes, min(one.chunk, CHUNK, shapes.seq_length))
    if is_again:
        kept += tokens * heads * FP32 + (0 if width == FP32 else tokens * mixed * width)
    else:
        products = 3 * heads * chunked.size + 2 * state + 3 * heads
        by_head = heads * (3 * one.head_dim + 4 * one.state_dim)
        states = chunked.number * 2 * heads * one.state_dim * one.head_dim
        kept += (chunked.tokens * (products + by_head) + states) * FP32
    # With the skip added, the gate's activation; in the norm its input and what it gives.
    kept += tokens * 2 * inner * FP32 + tokens * inner * width
    if one.gated_norm:
        normed = 1 if shapes.has_kernels else 2
        kept += tokens * (normed * inner + groups) * FP32
    return kept + tokens * (projected * width if width == FP32 else inner * FP32)
