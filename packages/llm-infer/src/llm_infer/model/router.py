"""Which experts a token goes to, and with what weight."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Router
from llm_infer.model.rowwise import by_row

# T tokens, E experts, K chosen
_SPARSEMIXER_THRESHOLD = 0.02
_SCORES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "softmax": lambda x: x.softmax(-1),
        "sigmoid": partial(by_row, torch.sigmoid),
        "sqrtsoftplus": partial(by_row, lambda x: F.softplus(x).sqrt()),
    }
)
_SUMMED = MappingProxyType({"max": 1, "top2": 2})


def route(
    logits_TE: Tensor, bias_E: Tensor | None, *, top_k: int, router: Router
) -> tuple[Tensor, Tensor]:
    """Weights [T, K] and numbers [T, K] of the experts chosen."""
    if router.score == "sparsemixer":
        weights_TK, chosen_TK = _sparsemixer(logits_TE, top_k)
        return weights_TK * router.scaling, chosen_TK
    is_after = router.score == "softmax" and not router.pre_softmax
    scores_TE = logits_TE
    if not is_after:
        scores_TE = _SCORES[router.score](logits_TE)
    ranked_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if router.groups is not None:
        ranked_TE = _best_groups(ranked_TE, router)
    chosen_TK = ranked_TE.topk(top_k, dim=-1).indices
    weights_TK = scores_TE.gather(-1, chosen_TK)
    if is_after:
        weights_TK = weights_TK.softmax(-1)
    elif router.normalize:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK * router.scaling, chosen_TK


def _best_groups(ranked_TE: Tensor, router: Router) -> Tensor:
    """Minus infinity for experts outside the `top_groups` best groups of consecutive experts."""
    assert router.groups is not None
    assert router.top_groups is not None
    grouped = ranked_TE.unflatten(-1, (router.groups, -1))
    values = grouped.topk(_SUMMED[router.group_score], dim=-1).values.sum(-1)
    best = values.topk(router.top_groups, dim=-1).indices
    is_best = torch.zeros_like(values, dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~is_best[..., None], float("-inf")).flatten(-2)


def _sparsemixer(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """SparseMixer-v2 at inference (arXiv 2409.12136): one expert at a time, the best of the rest.

    Its weight is a softmax over what is left and near enough to it.
    """
    left, weights, chosen = logits_TE, list[Tensor](), list[Tensor]()
    for _ in range(top_k):
        best, index = left.max(-1, keepdim=True)
        distance = (best - logits_TE) / torch.maximum(logits_TE.abs(), best)
        near = left.masked_fill(distance > _SPARSEMIXER_THRESHOLD, float("-inf")).softmax(-1)
        weights.append(near.gather(-1, index))
        chosen.append(index)
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(weights, -1), torch.cat(chosen, -1)
