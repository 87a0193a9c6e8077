"""What each backend of grouped_matmul takes."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import INTEGERS, alike, floating, npu_floating, on_npu, short
from llm_kernels_npu.ops.grouped_matmul.reference import host_sizes

# npu_grouped_matmul's documented bound of the last axis of both factors.
_NPU_MAX_AXIS = 65_535


def _shapes(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> str | None:
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[1]:
        return (
            f"x of shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "want [M, K] and [E, K, N]"
        )
    return alike("x", x, "weight", weight) or _sizes(x, weight, group_sizes)


def _sizes(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> str | None:
    experts, rows = weight.shape[0], x.shape[0]
    if isinstance(group_sizes, Tensor):
        if group_sizes.shape != (experts,) or group_sizes.dtype not in INTEGERS:
            return (
                f"group_sizes is {short(group_sizes.dtype)} of shape {tuple(group_sizes.shape)}, "
                f"want int32 or int64 of shape ({experts},)"
            )
        if group_sizes.device.type != "cpu":
            # Reading them would wait for the device at every call.
            return None
    elif len(group_sizes) != experts:
        return f"group_sizes has {len(group_sizes)} entries, want weight's {experts}"
    sizes = host_sizes(group_sizes)
    if min(sizes) < 0 or sum(sizes) != rows:
        return f"group_sizes {sizes[:8]} sum to {sum(sizes)}, want x's {rows} and none below 0"
    return None


def _any_device(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> str | None:
    return _shapes(x, weight, group_sizes) or floating("x", x)


def _npu(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> str | None:
    longest = max(*weight.shape[1:], 0)
    if longest > _NPU_MAX_AXIS:
        return f"weight of shape {tuple(weight.shape)}: K and N must be at most {_NPU_MAX_AXIS}"
    return on_npu("x", x) or _shapes(x, weight, group_sizes) or npu_floating("weight", weight)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "npu": _npu}
)
