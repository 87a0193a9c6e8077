"""What each backend of linear_cross_entropy takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import alike, floating, short, together, triton_floating


def _any_device(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> str | None:
    del ignore_index
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        return (
            f"hidden of shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}, "
            "want [N, H] and [V, H]"
        )
    if targets.shape != hidden.shape[:1]:
        return f"targets of shape {tuple(targets.shape)}, want ({hidden.shape[0]},)"
    if targets.dtype is not torch.int64:
        return f"targets are {short(targets.dtype)}, want int64"
    return (
        floating("hidden", hidden)
        or alike("hidden", hidden, "weight", weight)
        or together("hidden", hidden, "targets", targets)
    )


def _triton(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> str | None:
    reason = _any_device(hidden, weight, targets, ignore_index=ignore_index)
    if reason is None and weight.shape[0] == 0:
        reason = f"weight of shape {tuple(weight.shape)} has no words"
    return reason or triton_floating("hidden", hidden)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton}
)
