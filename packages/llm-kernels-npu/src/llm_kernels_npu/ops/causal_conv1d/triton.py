"""causal_conv1d in Triton: one kernel forward, two backward; sums over programs, no atomics."""

from collections.abc import Callable
from typing import Literal, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.causal_conv1d import triton_kernels as kernels
from llm_kernels_npu.ops.causal_conv1d.reference import with_state
from llm_kernels_npu.ops.causal_conv1d.tiles import conv_tile
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.tiles import power_of_two, programs, tile_count, wave


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_conv1d`."""
    width, tokens = weight.shape[1], x.shape[1]
    before = None if initial_state is None else initial_state.to(x.dtype)
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Convolve.apply)  # pyright: ignore[reportUnknownMemberType]
    out = run(x, weight.t(), bias, before, activation == "silu")
    if tokens < width - 1:
        return out, with_state(x, width, initial_state)[:, tokens:]
    # A copy: a view would keep all of x alive for as long as the state is.
    return out, x[:, tokens - width + 1 :].clone()


class _ConvolveContext(Context, Protocol):
    silu: bool
    has_bias: bool


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _ConvolveContext,
        x: Tensor,
        taps: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        silu: bool,
    ) -> Tensor:
        x = x if x.stride(-1) == 1 else x.contiguous()
        taps = taps.contiguous()
        state = None if state is None else state.contiguous()
        (batches, tokens, channels), width = x.shape, taps.shape[0]
        out = x.new_empty(x.shape)
        tile = conv_tile(tokens, channels, width=width, target=TARGET)
        tasks, tiles = batches * tile_count(tokens, tile.rows), tile_count(channels, tile.columns)
        launch(
            kernels.forward_kernel,
            (programs(tasks, others=tiles), tiles),
            *(x, taps, bias, state, out, *x.shape, *x.stride()[:2]),
            **{"WIDTH": width, "SILU": silu, **tile.constants()},
        )
        ctx.save_for_backward(x, taps, *(one for one in (bias, state) if one is not None))
        ctx.silu, ctx.has_bias = silu, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _ConvolveContext, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, None]:
        x, taps, *others = ctx.saved_tensors
        bias = others.pop(0) if ctx.has_bias else None
        state = others.pop() if others else None
        slopes, sums = _weight_gradients(x, taps, bias, state, grad.contiguous(), silu=ctx.silu)
        grad_x, grad_state = _input_gradients(slopes, taps, state)
        grad_bias = None if bias is None else sums[-1].to(bias.dtype)
        return grad_x, sums[:-1].to(taps.dtype), grad_bias, grad_state, None


def _weight_gradients(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    grad: Tensor,
    *,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients before the activation [B, T, C], and of taps and bias [W + 1, C], float32."""
    (batches, tokens, channels), width = x.shape, taps.shape[0]
    tile = conv_tile(tokens, channels, width=width, target=TARGET)
    tasks, tiles = batches * tile_count(tokens, tile.rows), tile_count(channels, tile.columns)
    count = wave(tasks, target=TARGET, others=tiles)
    partials = x.new_empty(count, width + 1, channels, dtype=torch.float32)
    slopes = torch.empty_like(grad) if silu else grad
    launch(
        kernels.weight_kernel,
        (count, tiles),
        *(x, taps, bias, state, grad, slopes if silu else None, partials),
        *(*x.shape, *x.stride()[:2]),
        **{"WIDTH": width, "SILU": silu, "KINDS": power_of_two(width + 1), **tile.constants()},
    )
    return slopes, partials.sum(0)


def _input_gradients(
    slopes: Tensor, taps: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    batches, tokens, channels = slopes.shape
    grad_x = torch.empty_like(slopes)
    grad_state = None if state is None else torch.empty_like(state)
    places = tokens + (0 if state is None else state.shape[1])
    tile = conv_tile(places, channels, width=taps.shape[0], target=TARGET)
    tasks, tiles = batches * tile_count(places, tile.rows), tile_count(channels, tile.columns)
    launch(
        kernels.input_kernel,
        (programs(tasks, others=tiles), tiles),
        *(slopes, taps, grad_x, grad_state, batches, tokens, channels),
        **{"WIDTH": taps.shape[0], **tile.constants()},
    )
    return grad_x, grad_state
