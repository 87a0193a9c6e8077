"""Which experts a token goes to, and with what weights (pure)."""

import torch
import torch.nn.functional as F

from llm_train.arch import Router

# SparseMixer drops experts whose score is this share below the best (Phi-3.5-MoE's value, twice).
_SPARSEMIXER_BAND = 0.02
_TINY = 1e-20


def choose_experts(
    logits: torch.Tensor, router: Router, *, top_k: int, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [N, E] (0 where not chosen) and the choice [N, E] for logits [N, E], in fp32.

    `bias` [E] is added to the scores for choosing only.
    """
    logits = logits.float()
    if router.score == "sparsemixer":
        weights, chosen = _sparsemixer(logits)
    elif router.score == "softmax" and not router.pre_softmax:
        best, chosen = logits.topk(top_k, dim=-1)
        weights = best.softmax(-1)
    else:
        scores = _SCORES[router.score](logits)
        ranked = scores if bias is None else scores + bias.float()
        chosen = _limited(ranked, router).topk(top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if router.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
    weights = weights * router.scaling
    spread = torch.zeros_like(logits).scatter(-1, chosen, weights)
    return spread, torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, value=True)


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
