"""What each backend of router_topk takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import floats_together, npu_floating, on_npu
from llm_kernels_npu.ops.router_topk.reference import GROUP_SCORES

_SCORES = ("softmax", "sigmoid")
# npu_moe_gating_top_k's documented bounds: experts, a group's padded to a multiple of 32.
_NPU_MAX_EXPERTS = 2048
_NPU_GROUP_MULTIPLE = 32


def _any_device(
    logits: Tensor,
    *,
    top_k: int,
    score: str = "softmax",
    bias: Tensor | None = None,
    groups: int = 1,
    top_groups: int = 1,
    group_score: str = "top2",
    normalize: bool = False,
    scaling: float = 1.0,
) -> str | None:
    del normalize, scaling
    shape = logits.shape
    if len(shape) != 2:
        return f"logits have {len(shape)} dimensions, want 2: [N, E]"
    if score not in _SCORES:
        return f"score is {score!r}, want one of {', '.join(_SCORES)}"
    if group_score not in GROUP_SCORES:
        return f"group_score is {group_score!r}, want one of {', '.join(GROUP_SCORES)}"
    experts = shape[1]
    if bias is not None and bias.shape != (experts,):
        return f"bias of shape {tuple(bias.shape)}, want ({experts},)"
    return _groups(experts, top_k, groups, top_groups, group_score) or floats_together(
        ("logits", logits), ("bias", bias)
    )


def _groups(experts: int, top_k: int, groups: int, top_groups: int, group_score: str) -> str | None:
    if groups < 1 or experts % groups:
        return f"{experts} experts do not fall into {groups} groups"
    if not 1 <= top_groups <= groups:
        return f"top_groups is {top_groups}, want 1 to groups={groups}"
    size = experts // groups
    if groups > 1 and size < GROUP_SCORES[group_score]:
        return f"a group has {size} experts, want {GROUP_SCORES[group_score]} for its score"
    in_reach = size * top_groups
    if not 1 <= top_k <= in_reach:
        return f"top_k is {top_k}, want 1 to {in_reach}, the experts in reach"
    return None


def _npu(
    logits: Tensor,
    *,
    top_k: int,
    score: str = "softmax",
    bias: Tensor | None = None,
    groups: int = 1,
    top_groups: int = 1,
    group_score: str = "top2",
    normalize: bool = False,
    scaling: float = 1.0,
) -> str | None:
    return (
        on_npu("logits", logits)
        or _any_device(
            logits,
            top_k=top_k,
            score=score,
            bias=bias,
            groups=groups,
            top_groups=top_groups,
            group_score=group_score,
            scaling=scaling,
        )
        or npu_floating("logits", logits)
        or _npu_sizes(
            logits.shape[1], groups, unnormalized_sigmoid=score == "sigmoid" and not normalize
        )
    )


def _npu_sizes(experts: int, groups: int, *, unnormalized_sigmoid: bool) -> str | None:
    if unnormalized_sigmoid:
        return "npu_moe_gating_top_k has no sigmoid weights without normalize"
    size = experts // groups
    padded = -(-size // _NPU_GROUP_MULTIPLE) * _NPU_GROUP_MULTIPLE * groups
    if max(experts, padded) > _NPU_MAX_EXPERTS:
        return f"{experts} experts in {groups} groups, want at most {_NPU_MAX_EXPERTS}"
    if size <= 2:
        return f"a group has {size} experts, want more than 2"
    return None


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "npu": _npu}
)
