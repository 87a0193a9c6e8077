"""What each backend of router_topk takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import floating, npu_floating, on_npu, together
from llm_kernels_npu.ops.router_topk.reference import GROUP_SCORES

_SCORES = ("softmax", "sigmoid")
# npu_moe_gating_top_k's documented bounds: experts, a group's padded to a multiple of 32.
_NPU_MAX_EXPERTS = 2048
_NPU_GROUP_MULTIPLE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """The options of a call, defaults filled in."""

    top_k: int
    score: str = "softmax"
    bias: Tensor | None = None
    groups: int = 1
    top_groups: int = 1
    group_score: str = "top2"
    normalize: bool = False
    scaling: float = 1.0


def _shapes(logits: Tensor, call: _Options) -> str | None:
    if logits.dim() != 2:
        return f"logits have {logits.dim()} dimensions, want 2: [N, E]"
    if call.score not in _SCORES:
        return f"score is {call.score!r}, want one of {', '.join(_SCORES)}"
    if call.group_score not in GROUP_SCORES:
        return f"group_score is {call.group_score!r}, want one of {', '.join(GROUP_SCORES)}"
    if call.bias is not None and call.bias.shape != logits.shape[1:]:
        return f"bias of shape {tuple(call.bias.shape)}, want ({logits.shape[1]},)"
    return _groups(logits.shape[1], call) or (
        None if call.bias is None else together("logits", logits, "bias", call.bias)
    )


def _groups(experts: int, call: _Options) -> str | None:
    if call.groups < 1 or experts % call.groups:
        return f"{experts} experts do not fall into {call.groups} groups"
    if not 1 <= call.top_groups <= call.groups:
        return f"top_groups is {call.top_groups}, want 1 to groups={call.groups}"
    size = experts // call.groups
    if call.groups > 1 and size < GROUP_SCORES[call.group_score]:
        return f"a group has {size} experts, want {GROUP_SCORES[call.group_score]} for its score"
    in_reach = size * call.top_groups
    if not 1 <= call.top_k <= in_reach:
        return f"top_k is {call.top_k}, want 1 to {in_reach}, the experts in reach"
    return None


def _any_device(logits: Tensor, **options: object) -> str | None:
    call = _Options(**options)  # pyright: ignore[reportArgumentType]  # the operator's own
    return _shapes(logits, call) or floating("logits", logits)


def _npu(logits: Tensor, **options: object) -> str | None:
    call = _Options(**options)  # pyright: ignore[reportArgumentType]  # the operator's own
    return (
        on_npu("logits", logits)
        or _shapes(logits, call)
        or npu_floating("logits", logits)
        or _npu_sizes(logits.shape[1], call)
    )


def _npu_sizes(experts: int, call: _Options) -> str | None:
    if call.score == "sigmoid" and not call.normalize:
        return "npu_moe_gating_top_k has no sigmoid weights without normalize"
    size = experts // call.groups
    padded = -(-size // _NPU_GROUP_MULTIPLE) * _NPU_GROUP_MULTIPLE * call.groups
    if max(experts, padded) > _NPU_MAX_EXPERTS:
        return f"{experts} experts in {call.groups} groups, want at most {_NPU_MAX_EXPERTS}"
    if size <= 2:
        return f"a group has {size} experts, want more than 2"
    return None


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "npu": _npu}
)
