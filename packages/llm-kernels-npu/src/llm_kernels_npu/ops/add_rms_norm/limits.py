"""What each backend of add_rms_norm takes: what rms_norm takes, with a residual like x."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import alike
from llm_kernels_npu.ops.rms_norm.limits import LIMITS as NORM


def _residual(x: Tensor, residual: Tensor) -> str | None:
    shape = x.shape
    if residual.shape != shape:
        return f"residual of shape {tuple(residual.shape)}, want {tuple(shape)} as x has"
    if x.dtype is residual.dtype and x.device == residual.device:
        return None
    return alike("x", x, "residual", residual)


def _any_device(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> str | None:
    return _residual(x, residual) or NORM["torch"](x, weight, eps=eps, offset=offset)


def _npu(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> str | None:
    return _residual(x, residual) or NORM["npu"](x, weight, eps=eps, offset=offset)


def _triton(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
) -> str | None:
    return _residual(x, residual) or NORM["triton"](x, weight, eps=eps, offset=offset)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton, "npu": _npu}
)
