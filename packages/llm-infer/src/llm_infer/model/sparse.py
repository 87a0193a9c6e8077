"""Operators of sparse attention in plain torch: a query's result depends on its own keys alone.

Products have the rows, at most, and the numbers of keys that depend on nothing but a query's
position (see `attend`): whole tiles of keys, and one tile that the last of them are filled up to.

B batch, T queries, S keys, H heads, D channels, K chosen keys, E channels of a value
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.linear import multiply

NO_KEY = -1
"""Stands behind the keys of a query that sees fewer than `top_k`."""
# Queries of one call must not lie on both sides of a multiple of this.
KEY_TILE = 64
# Scores of all heads that lie in memory at once.
_AT_ONCE = 1 << 23


def dsa_indexer(q_BTHD: Tensor, k_BSD: Tensor, weights_BTH: Tensor, *, top_k: int) -> Tensor:
    """See `Kernels.dsa_indexer`; of keys with equal scores the first is taken."""
    found = [
        _best(*one, top_k=top_k) for one in zip(q_BTHD, k_BSD, weights_BTH.float(), strict=True)
    ]
    return torch.stack(found)


def sparse_attention(
    q_BTHD: Tensor, kv_BSD: Tensor, keys_BTK: Tensor, *, value_dim: int, scale: float
) -> Tensor:
    """See `Kernels.sparse_attention`."""
    mixed = [
        _attended(*one, value_dim=value_dim, scale=scale)
        for one in zip(q_BTHD, kv_BSD, keys_BTK, strict=True)
    ]
    return torch.stack(mixed)


def _best(q_THD: Tensor, k_SD: Tensor, weights_TH: Tensor, *, top_k: int) -> Tensor:
    """[T, K] int32 of one text, whose last query stands at its last key."""
    queries, keys = len(q_THD), len(k_SD)
    step = max(1, _AT_ONCE // (q_THD.shape[1] * keys))
    scores = [
        _scores(q, k_SD.float(), weights)
        for q, weights in zip(q_THD.float().split(step), weights_TH.split(step), strict=True)
    ]
    scores_TS = torch.cat(scores)
    place_S = torch.arange(keys, device=q_THD.device)
    is_hidden_TS = place_S > torch.arange(keys - queries, keys, device=q_THD.device)[:, None]
    if keys <= top_k:
        chosen = place_S.expand(queries, keys).masked_fill(is_hidden_TS, NO_KEY)
        return F.pad(chosen, (0, top_k - keys), value=NO_KEY).int()
    # What is no number is never among the best, so that a row always has its `top_k`.
    scores_TS = scores_TS.masked_fill(is_hidden_TS | scores_TS.isnan(), -math.inf)
    worst_T1 = scores_TS.topk(top_k, dim=-1).values[:, -1:]
    is_better, is_level = scores_TS > worst_T1, scores_TS == worst_T1
    left_T1 = top_k - is_better.sum(-1, keepdim=True)
    is_chosen_TS = is_better | (is_level & (is_level.cumsum(-1) <= left_T1))
    chosen = is_chosen_TS.nonzero()[:, 1].view(queries, top_k)
    return chosen.masked_fill(is_hidden_TS.gather(1, chosen), NO_KEY).int()


def _scores(q_THD: Tensor, k_SD: Tensor, weights_TH: Tensor) -> Tensor:
    """[T, S]: the sum over heads of `weight * relu(q · k)`, added in the order of the heads."""
    queries, heads, _ = q_THD.shape
    whole = len(k_SD) // KEY_TILE * KEY_TILE
    last_SD = F.pad(k_SD[whole:], (0, 0, 0, -len(k_SD) % KEY_TILE))
    q_1RD = q_THD.flatten(0, 1)[None]
    parts = [multiply(q_1RD, part.t()[None])[0] for part in (k_SD[:whole], last_SD) if len(part)]
    dots_THS = torch.cat(parts, dim=-1)[:, : len(k_SD)].relu_().view(queries, heads, -1)
    dots_THS *= weights_TH[:, :, None]
    total_TS = dots_THS[:, 0].clone()
    for head in range(1, heads):
        total_TS += dots_THS[:, head]
    return total_TS


def _attended(
    q_THD: Tensor, kv_SD: Tensor, keys_TK: Tensor, *, value_dim: int, scale: float
) -> Tensor:
    """[T, H, E] of one text. Each token by itself, as a batch of products may round otherwise."""
    out_THE = q_THD.new_empty(*q_THD.shape[:2], value_dim)
    is_none_T1K = (keys_TK < 0)[:, None]
    for token, (q_HD, keys_K, is_none_1K) in enumerate(
        zip(q_THD * scale, keys_TK.clamp(min=0), is_none_T1K, strict=True)
    ):
        kv_1KD = kv_SD.index_select(0, keys_K)[None]
        scores_HK = multiply(q_HD[None], kv_1KD.transpose(1, 2))[0].float()
        # Not -inf, of which a query without keys would make NaN.
        scores_HK.masked_fill_(is_none_1K, torch.finfo(torch.float32).min)
        shares_HK = scores_HK.softmax(-1).masked_fill_(is_none_1K, 0.0).to(kv_SD.dtype)
        out_THE[token] = multiply(shares_HK[None], kv_1KD[..., :value_dim])[0]
    return out_THE
