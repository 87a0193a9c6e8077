"""What each backend of grouped_matmul takes."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import INTEGERS, alike, floating, npu_floating, on_npu, short
from llm_kernels_npu.ops.grouped_matmul.reference import host_sizes

# npu_grouped_matmul's documented bound of the last axis of both factors.
_NPU_MAX_AXIS = 65_535


def _shapes(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> str | None:
    x_shape, weight_shape = x.shape, weight.shape
    if len(x_shape) != 2 or len(weight_shape) != 3 or x_shape[1] != weight_shape[1]:
        return (
            f"x of shape {tuple(x_shape)} and weight {tuple(weight_shape)}, "
            "want [M, K] and [E, K, N]"
        )
    if not weight_shape[0]:
        return f"weight of shape {tuple(weight_shape)} has no groups"
    if x.dtype is not weight.dtype or x.device != weight.device:
        return alike("x", x, "weight", weight)
    return _sizes(group_sizes, weight_shape[0], x_shape[0])


def _sizes(group_sizes: Tensor | Sequence[int], experts: int, rows: int) -> str | None:
    if isinstance(group_sizes, Tensor):
        if group_sizes.shape != (experts,) or group_sizes.dtype not in INTEGERS:
            return (
                f"group_sizes is {short(group_sizes.dtype)} of shape {tuple(group_sizes.shape)}, "
                f"want int32 or int64 of shape ({experts},)"
            )
        if not group_sizes.is_cpu:
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
