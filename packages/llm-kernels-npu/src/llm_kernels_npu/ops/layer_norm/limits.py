"""What each backend of layer_norm takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import FLOATS, floating, together, triton_floating


def _vector(name: str, vector: Tensor, x: Tensor) -> str | None:
    shape = vector.shape
    if shape != x.shape[-1:]:
        return f"{name} of shape {tuple(shape)}, want {tuple(x.shape[-1:])} as x ends in it"
    if vector.dtype in FLOATS and vector.device == x.device:
        return None
    return floating(name, vector) or together("x", x, name, vector)


def _any_device(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float, offset: float = 0.0
) -> str | None:
    del eps, offset
    return (
        floating("x", x)
        or _vector("weight", weight, x)
        or (None if bias is None else _vector("bias", bias, x))
    )


def _triton(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float, offset: float = 0.0
) -> str | None:
    return (
        _any_device(x, weight, bias, eps=eps, offset=offset)
        or triton_floating("x", x)
        or triton_floating("weight", weight)
        or (None if bias is None else triton_floating("bias", bias))
    )


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton}
)
