"""Checks that several operators' limits share: each gives a reason, or None for ok.

Limits run at every call. So they fetch an attribute once: a tensor's shape takes 0.1 µs, its dtype
and device 0.05 each, a slice of a shape 0.13 more. And they compare in place, and call a check here
to name what is wrong: a call costs little in a loop, but microseconds after an operator that has
swept the processor's caches.
"""

import torch
from torch import Tensor

# Tuples: `in` takes the first that is the same, where a set would have each dtype hashed.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NPU_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NPU_HALVES = (torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32)


def wide(x: Tensor) -> Tensor:
    """`x` in the precision sums are made in: float64 stays, all else becomes float32."""
    return x if x.dtype is torch.float64 else x.float()


def floating(name: str, x: Tensor) -> str | None:
    """Refuse anything but floating point."""
    if x.dtype in FLOATS:
        return None
    return f"{name} is {short(x.dtype)}, want one of {_names(FLOATS)}"


def npu_floating(name: str, x: Tensor) -> str | None:
    """Refuse what the fused operators of torch_npu do not take: other dtypes, empty tensors."""
    if x.dtype not in NPU_FLOATS:
        return f"{name} is {short(x.dtype)}, want one of {_names(NPU_FLOATS)}"
    if x.numel() == 0:
        return f"{name} of shape {tuple(x.shape)} is empty"
    return None


def even(x: Tensor) -> str | None:
    """Refuse a last dimension that cannot be gate and up side by side."""
    if x.dim() == 0 or x.shape[-1] % 2:
        return f"x of shape {tuple(x.shape)}, want an even last dimension: gate, then up"
    return None


def npu_half(name: str, x: Tensor) -> str | None:
    """Refuse what fused operators for 16-bit numbers do not take: float32 too, empty tensors."""
    if x.dtype not in NPU_HALVES:
        return f"{name} is {short(x.dtype)}, want one of {_names(NPU_HALVES)}"
    return npu_floating(name, x)


def triton_floating(name: str, x: Tensor) -> str | None:
    """Refuse what no Triton kernel here takes: float64, integers, a CPU's memory, no features."""
    if x.dtype not in NPU_FLOATS:
        return f"{name} is {short(x.dtype)}, want one of {_names(NPU_FLOATS)}"
    shape = x.shape
    if shape and shape[-1] == 0:
        return f"{name} of shape {tuple(shape)} has no features"
    # A device's type is a new string at every look, 0.3 µs.
    if x.is_cuda or x.device.type == "npu":
        return None
    from llm_kernels_npu.ops.launch import INTERPRETED  # imports triton, which only this one needs

    return None if INTERPRETED else f"{name} is on {x.device}, want a cuda or npu device"


def on_npu(name: str, x: Tensor) -> str | None:
    """Refuse a tensor that is not on an NPU."""
    if x.device.type == "npu":
        return None
    return f"{name} is on {x.device}, want an npu device"


def together(first: str, x: Tensor, second: str, y: Tensor) -> str | None:
    """Refuse two tensors on different devices."""
    if x.device == y.device:
        return None
    return f"{first} is on {x.device} but {second} on {y.device}"


def floats_together(*named: tuple[str, Tensor | None]) -> str | None:
    """Refuse what cannot be multiplied: integers, float64 beside others, different devices.

    Where one is None, it was not given.
    """
    given = [(name, x) for name, x in named if x is not None]
    first, x = given[0]
    for name, other in given:
        reason = floating(name, other) or together(first, x, name, other)
        if reason is not None:
            return reason
        if (other.dtype is torch.float64) is not (x.dtype is torch.float64):
            return f"{first} is {short(x.dtype)} but {name} {short(other.dtype)}: float64 is all's"
    return None


def alike(first: str, x: Tensor, second: str, y: Tensor) -> str | None:
    """Refuse two tensors of different dtypes or devices."""
    if x.dtype is not y.dtype:
        return f"{first} is {short(x.dtype)} but {second} {short(y.dtype)}"
    return together(first, x, second, y)


def short(dtype: torch.dtype) -> str:
    """`torch.bfloat16` → `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(sorted(short(dtype) for dtype in dtypes))
