"""What each backend of adamw takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import (
    FLOATS,
    alike,
    floating,
    on_npu,
    short,
    together,
    triton_floating,
)

_MASTER = (torch.float32, torch.float64)


class Options(TypedDict):
    """The keyword arguments of adamw."""

    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def _reference(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> str | None:
    del lr, eps, weight_decay
    return _step(param, grad, exp_avg, exp_avg_sq, step, beta1, beta2)


def _fused(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> str | None:
    del lr, eps, weight_decay
    # The fused steps walk through memory, whatever the strides.
    if not (
        param.is_contiguous()
        and grad.is_contiguous()
        and exp_avg.is_contiguous()
        and exp_avg_sq.is_contiguous()
    ):
        return _strided(param=param, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    return _step(param, grad, exp_avg, exp_avg_sq, step, beta1, beta2)


def _npu(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, **options: Unpack[Options]
) -> str | None:
    if param.dtype is torch.float64:
        return "param is float64, want float32"
    if param.numel() == 0:
        return f"param of shape {tuple(param.shape)} is empty"
    return on_npu("param", param) or _fused(param, grad, exp_avg, exp_avg_sq, **options)


def _triton(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, **options: Unpack[Options]
) -> str | None:
    if param.dtype is torch.float64:
        return "param is float64, want float32"
    return triton_floating("grad", grad) or _fused(param, grad, exp_avg, exp_avg_sq, **options)


def _step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    beta1: float,
    beta2: float,
) -> str | None:
    dtype, shape, device = param.dtype, param.shape, param.device
    if dtype not in _MASTER:
        return f"param is {short(dtype)}, want float32 or float64: a master copy"
    if param.requires_grad and torch.is_grad_enabled():
        return "param takes a gradient: it is written to, call within torch.no_grad()"
    if step < 1:
        return f"step is {step}, want 1 for the first"
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        return f"beta1 is {beta1} and beta2 {beta2}, want each from 0 to less than 1"
    if grad.shape != shape or exp_avg.shape != shape or exp_avg_sq.shape != shape:
        shapes = [tuple(x.shape) for x in (param, grad, exp_avg, exp_avg_sq)]
        return f"param, grad, exp_avg, exp_avg_sq have shapes {shapes}, want one"
    if (
        grad.dtype in FLOATS
        and exp_avg.dtype is exp_avg_sq.dtype is dtype
        and grad.device == device
        and exp_avg.device == device
        and exp_avg_sq.device == device
    ):
        return None
    return (
        floating("grad", grad)
        or together("param", param, "grad", grad)
        or alike("param", param, "exp_avg", exp_avg)
        or alike("param", param, "exp_avg_sq", exp_avg_sq)
    )


def _strided(**tensors: Tensor) -> str:
    name, tensor = next((name, x) for name, x in tensors.items() if not x.is_contiguous())
    return f"{name} has strides {tuple(tensor.stride())}, want contiguous"


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _reference, "torch": _fused, "triton": _triton, "npu": _npu}
)
