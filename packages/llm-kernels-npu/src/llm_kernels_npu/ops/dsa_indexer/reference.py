"""The specification of dsa_indexer."""

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.attention.reference import visible
from llm_kernels_npu.ops.checks import wide

NO_KEY = -1
"""Stands behind the keys of a query that has fewer than `top_k`."""


def dsa_indexer(
    q: Tensor, k: Tensor, weights: Tensor, *, top_k: int, causal: bool = True
) -> Tensor:
    """The `top_k` keys of highest `Σ over h of weights[h] * relu(q[h] · k)`, for each query.

    q [B, T, H, D], k [B, S, D], weights [B, T, H] → keys [B, T, top_k] int32: positions in
    ascending order, then NO_KEY where there are fewer. Scores in float32; of equal ones the first
    key is taken. causal: as in attention, the last query stands at the last key. No gradients: an
    indexer learns from a loss on its scores.
    """
    scores = torch.einsum("bthd,bsd->bths", wide(q.detach()), wide(k.detach())).relu()
    scores = torch.einsum("bths,bth->bts", scores, wide(weights.detach()))
    if causal:
        seen = visible(q.shape[1], k.shape[1], window=None, device=q.device)
        scores = scores.masked_fill(~seen, float("-inf"))
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    is_seen = scores.gather(-1, best) > float("-inf")
    return ascending(best.masked_fill(~is_seen, NO_KEY), top_k)


def ascending(keys: Tensor, top_k: int) -> Tensor:
    """Keys [..., K] in ascending order, NO_KEY behind them and up to `top_k`; int32."""
    last = torch.iinfo(torch.int32).max
    ordered = keys.int().masked_fill(keys == NO_KEY, last).sort(dim=-1).values
    ordered = ordered.masked_fill(ordered == last, NO_KEY)
    return functional.pad(ordered, (0, top_k - ordered.shape[-1]), value=NO_KEY)
