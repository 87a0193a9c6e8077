"""What each backend of swiglu takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import even, floating, npu_floating, on_npu, triton_floating


def _any_device(x: Tensor) -> str | None:
    return even(x) or floating("x", x)


def _npu(x: Tensor) -> str | None:
    if x.dim() > 8:
        return f"x has {x.dim()} dimensions, want 1 to 8"
    return on_npu("x", x) or even(x) or npu_floating("x", x)


def _triton(x: Tensor) -> str | None:
    return even(x) or triton_floating("x", x)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton, "npu": _npu}
)
