"""What each backend of linear_cross_entropy takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import get_args

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import FLOATS, alike, floating, short, together, triton_floating
from llm_kernels_npu.signatures import Reduction

_REDUCTIONS = get_args(Reduction)


def _any_device(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "none",
    chunk_rows: int | None = None,
) -> str | None:
    del ignore_index
    if chunk_rows is not None and chunk_rows < 1:
        return f"chunk_rows is {chunk_rows}, want at least 1"
    if reduction not in _REDUCTIONS:
        return f"reduction is {reduction!r}, want one of {', '.join(_REDUCTIONS)}"
    hidden_shape, weight_shape = hidden.shape, weight.shape
    if len(hidden_shape) != 2 or len(weight_shape) != 2 or hidden_shape[1] != weight_shape[1]:
        return (
            f"hidden of shape {tuple(hidden_shape)} and weight {tuple(weight_shape)}, "
            "want [N, H] and [V, H]"
        )
    if targets.shape != (hidden_shape[0],):
        return f"targets of shape {tuple(targets.shape)}, want ({hidden_shape[0]},)"
    if targets.dtype is not torch.int64:
        return f"targets are {short(targets.dtype)}, want int64"
    device = hidden.device
    if (
        hidden.dtype is weight.dtype in FLOATS
        and weight.device == device
        and targets.device == device
    ):
        return None
    return (
        floating("hidden", hidden)
        or alike("hidden", hidden, "weight", weight)
        or together("hidden", hidden, "targets", targets)
    )


def _triton(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "none",
    chunk_rows: int | None = None,
) -> str | None:
    reason = _any_device(
        hidden,
        weight,
        targets,
        ignore_index=ignore_index,
        reduction=reduction,
        chunk_rows=chunk_rows,
    )
    if reason is None and weight.shape[0] == 0:
        reason = f"weight of shape {tuple(weight.shape)} has no words"
    return reason or triton_floating("hidden", hidden)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton}
)
