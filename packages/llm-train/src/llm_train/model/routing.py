"""Which experts a token goes to, and with what weights (pure)."""

import torch
import torch.nn.functional as F

from llm_train.arch import Router
from llm_train.config import DropPolicy

# SparseMixer drops experts whose score is this share below the best (Phi-3.5-MoE's value, twice).
_SPARSEMIXER_BAND = 0.02
_TINY = 1e-20


def choose_experts(
    logits: torch.Tensor, router: Router, *, top_k: int, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [N, E] (0 where not chosen) and the choice [N, E] for logits [N, E], in fp32 or fp64.

    `bias` [E] is added to the scores for choosing only.
    """
    logits = _full_precision(logits)
    if router.score == "sparsemixer":
        weights, chosen = _sparsemixer(logits)
    elif router.score == "softmax" and not router.pre_softmax:
        best, chosen = logits.topk(top_k, dim=-1)
        weights = best.softmax(-1)
    else:
        scores = _SCORES[router.score](logits)
        ranked = scores if bias is None else scores + bias.to(scores.dtype)
        chosen = _limited(ranked, router).topk(top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if router.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
    weights = weights * router.scaling
    spread = torch.zeros_like(logits).scatter(-1, chosen, weights)
    return spread, torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, value=True)


def drop_tokens(
    weights_NE: torch.Tensor,
    chosen_NE: torch.Tensor,
    *,
    capacity: int,
    policy: DropPolicy,
    is_filled_up: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and choice of which every expert keeps `capacity` tokens at most.

    `probs` keeps those of highest weight, `position` the first; `is_filled_up` gives an expert with
    fewer some that did not choose it, at weight 0.
    """
    tokens = len(weights_NE)
    rank = weights_NE.detach()
    if policy is DropPolicy.POSITION:
        places = torch.arange(tokens, device=rank.device, dtype=torch.float64)
        rank = (1 - places / tokens)[:, None].expand_as(rank)
    # Weights are positive: whoever chose an expert comes before whoever did not.
    rank = torch.where(chosen_NE, rank, -1.0)
    best = rank.topk(min(capacity, tokens), dim=0).indices
    kept = torch.zeros_like(chosen_NE).scatter(0, best, value=True)
    return weights_NE * (kept & chosen_NE), kept if is_filled_up else kept & chosen_NE


def balance_counts(
    logits_TBE: torch.Tensor, router: Router, top_k: int, valid_TB: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What balancing losses are made of, summed over the valid tokens of each sequence.

    Scores [B, E], each token's adding to 1; how often an expert was among the top-k, without
    biases and groups [B, E]; tokens [B].
    """
    scores = _shares(logits_TBE, router)
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k, dim=-1).indices, 1.0)
    if valid_TB is None:
        valid_TB = torch.ones_like(scores[..., 0])
    valid = valid_TB[..., None].to(scores.dtype)
    return (scores * valid).sum(0), (chosen * valid).sum(0).detach(), valid.sum((0, 2))


def balance_loss(
    scores_BE: torch.Tensor,
    chosen_BE: torch.Tensor,
    tokens_B: torch.Tensor,
    *,
    top_k: int,
    is_by_sequence: bool,
) -> torch.Tensor:
    """E · Σ f·P: f an expert's share of the choices, P its mean score (Switch, arXiv 2101.03961).

    Over all tokens, or the mean of the losses of the sequences (DeepSeek-V3, arXiv 2412.19437).
    """
    if not is_by_sequence:
        scores_BE, chosen_BE = scores_BE.sum(0, keepdim=True), chosen_BE.sum(0, keepdim=True)
        tokens_B = tokens_B.sum(0, keepdim=True)
    tokens_B = tokens_B.clamp(min=1.0)
    experts = scores_BE.shape[-1]
    return (experts * (chosen_BE * scores_BE).sum(-1) / (top_k * tokens_B.square())).mean()


def _shares(logits: torch.Tensor, router: Router) -> torch.Tensor:
    """Scores that add to 1 over the experts."""
    logits = _full_precision(logits)
    if router.score in ("softmax", "sparsemixer"):
        return logits.softmax(-1)
    scores = _SCORES[router.score](logits)
    return scores / (scores.sum(-1, keepdim=True) + _TINY)


def _full_precision(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype is torch.float64 else logits.float()


def _limited(scores: torch.Tensor, router: Router) -> torch.Tensor:
    """Scores with all but the best groups of experts out of reach."""
    if router.groups is None or router.top_groups is None or router.groups == router.top_groups:
        return scores
    by_group = scores.view(len(scores), router.groups, -1)
    best = by_group.topk(2 if router.group_score == "top2" else 1, dim=-1).values.sum(-1)
    kept = torch.zeros_like(best, dtype=torch.bool)
    kept.scatter_(-1, best.topk(router.top_groups, dim=-1).indices, value=True)
    return by_group.masked_fill(~kept[..., None], -torch.inf).flatten(1)


def _sparsemixer(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two experts, each weighed among those near it (arXiv 2409.12136, without its noise)."""
    weights, chosen, left = [], [], logits
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        scale = torch.maximum(logits.abs(), best)
        far = (best - logits) / scale > _SPARSEMIXER_BAND
        shares = left.masked_fill(far, -torch.inf).softmax(-1)
        weights.append(shares.gather(-1, index))
        chosen.append(index)
        left = left.scatter(-1, index, -torch.inf)
    return torch.cat(weights, -1), torch.cat(chosen, -1)


_SCORES = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits: F.softplus(logits).sqrt(),
}
