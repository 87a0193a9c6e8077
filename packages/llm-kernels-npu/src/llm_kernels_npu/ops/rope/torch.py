"""rope in place of one output tensor, with its inverse rotation as the gradient."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.checks import wide


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """See `reference.rope`."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Rotate.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(x, cos, sin, interleaved)


class _RotateContext(Context, Protocol):
    interleaved: bool


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _RotateContext, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotate(x, cos, sin, interleaved=interleaved)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _RotateContext, grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        interleaved = ctx.interleaved
        return _transposed(grad, cos, sin, interleaved=interleaved), None, None, None


def _pairs(x: Tensor, rotary_dim: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and second feature of every pair."""
    if interleaved:
        return x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    half = rotary_dim // 2
    return x[..., :half], x[..., half:rotary_dim]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    rotary_dim = cos.shape[-1]
    x1, x2 = (wide(part) for part in _pairs(x, rotary_dim, interleaved=interleaved))
    cos1, cos2 = _pairs(cos, rotary_dim, interleaved=interleaved)
    sin1, sin2 = _pairs(sin, rotary_dim, interleaved=interleaved)
    return _joined(x, x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2, interleaved=interleaved)


def _transposed(grad: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    rotary_dim = cos.shape[-1]
    g1, g2 = (wide(part) for part in _pairs(grad, rotary_dim, interleaved=interleaved))
    cos1, cos2 = _pairs(cos, rotary_dim, interleaved=interleaved)
    sin1, sin2 = _pairs(sin, rotary_dim, interleaved=interleaved)
    return _joined(grad, g1 * cos1 + g2 * sin2, g2 * cos2 - g1 * sin1, interleaved=interleaved)


def _joined(x: Tensor, first: Tensor, second: Tensor, *, interleaved: bool) -> Tensor:
    rotary_dim = 2 * first.shape[-1]
    out = torch.empty_like(x)
    out1, out2 = _pairs(out, rotary_dim, interleaved=interleaved)
    out1.copy_(first)
    out2.copy_(second)
    out[..., rotary_dim:].copy_(x[..., rotary_dim:])
    return out
