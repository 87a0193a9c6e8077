"""The specification of router_topk."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.signatures import GroupScore, RouterScore

TINY = 1e-20
"""Under the sum that normalised weights are divided by."""


def router_topk(
    logits: Tensor,
    *,
    top_k: int,
    score: RouterScore = "softmax",
    bias: Tensor | None = None,
    groups: int = 1,
    top_groups: int = 1,
    group_score: GroupScore = "top2",
    normalize: bool = False,
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The `top_k` experts of highest score, and their scores as weights.

    logits [N, E] → weights [N, K] float32 (float64 for float64 logits), experts [N, K] int64,
    highest first, equal ones by lowest index.
    score: "softmax" over the experts or "sigmoid" of each. bias [E] is added for choosing only.
    groups: only experts of the best `top_groups` runs of E / groups experts are chosen, a run's
    score the sum of its two highest ("top2") or its highest ("max"), with the bias.
    weights are divided by their sum when `normalize`, then multiplied by `scaling`. (Softmax over
    the chosen logits alone is softmax with `normalize`.)
    """
    scores = _SCORES[score](wide(logits))
    ranked = scores.detach() if bias is None else scores.detach() + bias
    if groups > 1:
        ranked = limited(ranked, groups=groups, top_groups=top_groups, group_score=group_score)
    experts = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return weights * scaling, experts


def limited(ranked: Tensor, *, groups: int, top_groups: int, group_score: GroupScore) -> Tensor:
    """Scores [N, E] with -inf for experts outside the best groups."""
    by_group = ranked.unflatten(-1, (groups, -1))
    best = by_group.topk(GROUP_SCORES[group_score], dim=-1).values.sum(-1)
    order = best.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(best, dtype=torch.bool)
    kept.scatter_(-1, order[:, :top_groups], value=True)
    return by_group.masked_fill(~kept[..., None], float("-inf")).flatten(1)


_SCORES = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid}
GROUP_SCORES = {"top2": 2, "max": 1}
"""How many of a group's highest scores are summed to the group's."""
