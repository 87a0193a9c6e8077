"""What each backend of cross_entropy takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import (
    FLOATS,
    floating,
    npu_floating,
    on_npu,
    short,
    together,
    triton_floating,
)


def _shapes(logits: Tensor, targets: Tensor) -> str | None:
    shape = logits.shape
    if len(shape) != 2 or targets.shape != (shape[0],):
        return (
            f"logits of shape {tuple(shape)} and targets {tuple(targets.shape)}, "
            "want [N, V] and [N]"
        )
    if targets.dtype is not torch.int64:
        return f"targets are {short(targets.dtype)}, want int64"
    if logits.device == targets.device:
        return None
    return together("logits", logits, "targets", targets)


def _any_device(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> str | None:
    del ignore_index
    reason = _shapes(logits, targets)
    if reason is None and logits.dtype not in FLOATS:
        reason = floating("logits", logits)
    return reason


def _npu(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> str | None:
    del ignore_index
    return on_npu("logits", logits) or _shapes(logits, targets) or npu_floating("logits", logits)


def _triton(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> str | None:
    del ignore_index
    return _shapes(logits, targets) or triton_floating("logits", logits)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton, "npu": _npu}
)
