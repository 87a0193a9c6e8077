"""router_topk by `torch_npu.npu_moe_gating_top_k`, which has no gradient of its own."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.router_topk.reference import TINY
from llm_kernels_npu.signatures import GroupScore, RouterScore

_NORM_TYPES = {"softmax": 0, "sigmoid": 1}
_GROUP_SELECT_MODES = {"max": 0, "top2": 1}


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
    """See `reference.router_topk`; which of equal scores comes first is the device's choice.

    The fused operator divides sigmoid scores by their sum, and softmax scores by nothing.
    """
    options = {
        "bias": None if bias is None else bias.float(),
        "k_group": top_groups if groups > 1 else 1,
        "group_count": groups,
        "group_select_mode": _GROUP_SELECT_MODES[group_score] if groups > 1 else 0,
        "norm_type": _NORM_TYPES[score],
        "out_flag": True,
        "eps": TINY,
    }
    is_softmax = score == "softmax"
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Any], _Fused.apply)  # pyright: ignore[reportUnknownMemberType]
    weights, experts = run(logits.float(), top_k, options)
    if is_softmax and normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return weights if scaling == 1.0 else weights * scaling, experts.long()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, top_k: int, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        fused = torch.ops.npu.npu_moe_gating_top_k.default
        weights, experts, scores = fused(logits, top_k, **options)
        ctx.is_softmax = options["norm_type"] == _NORM_TYPES["softmax"]
        ctx.save_for_backward(experts, scores)
        ctx.mark_non_differentiable(experts)
        return weights, experts

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Any, grad: Tensor, *_of_experts: Tensor
    ) -> tuple[Tensor, None, None]:
        experts, scores = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        chosen = experts.long()
        if not ctx.is_softmax:
            # Through the division of each picked score by the sum of all picked ones.
            picked = scores.gather(1, chosen)
            total = picked.sum(-1, keepdim=True) + TINY
            grad = (grad - (grad * picked).sum(-1, keepdim=True) / total) / total
        spread = torch.zeros_like(scores).scatter(1, chosen, grad)
        if ctx.is_softmax:
            return scores * (spread - (spread * scores).sum(-1, keepdim=True)), None, None
        return spread * scores * (1 - scores), None, None
