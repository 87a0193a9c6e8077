"""Attention over packed rows, one document after the other."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def each_document(
    dense: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Sequence[int],
    cu_seqlens_k: Sequence[int] | None,
) -> Tensor:
    """Each document's queries over its own keys; see `reference.attention` for the boundaries.

    q [B, T, H, D], k [B, S, G, D], v [B, S, G, E] → [B, T, H, E]. `dense` gets one document at a
    time, with a batch of 1. A document without keys gives zeros.
    """
    flat_q, flat_k, flat_v = (x.flatten(0, 1)[None] for x in (q, k, v))
    spans = itertools.pairwise(cu_seqlens)
    key_spans = itertools.pairwise(cu_seqlens if cu_seqlens_k is None else cu_seqlens_k)
    parts: list[Tensor] = []
    for (start, stop), (key_start, key_stop) in zip(spans, key_spans, strict=True):
        queries = flat_q[:, start:stop]
        if start == stop or key_start == key_stop:
            parts.append(q.new_zeros(1, stop - start, q.shape[2], v.shape[3]))
            continue
        keys, values = flat_k[:, key_start:key_stop], flat_v[:, key_start:key_stop]
        parts.append(dense(queries, keys, values))
    return torch.cat(parts, dim=1).view(*q.shape[:3], v.shape[3])
