"""`lora.fused_mlp`: a dense feed-forward and its adapters as one function to autograd.

Kept for backward are its input, what the first linear put out, and two tensors of the adapters'
rank: gate, product and activation are computed again, where plain adapters keep two more tensors
as wide as the feed-forward. Exchanges are overlapped as under `lora.overlap`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.model.feed_forward import FeedForward, activate
from llm_train.model.lora.adapter import Adapter
from llm_train.model.lora.products import Products, Weights, products_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the function is told beside tensors."""

    config: TransformerConfig
    first: Products
    second: Products
    bias: torch.Tensor | None = None


def fuse(feed_forward: FeedForward, first: Adapter, second: Adapter) -> None:
    """Have a feed-forward compute the adapters of its two linears itself, from now on."""
    parts = _Parts(
        config=feed_forward.config,
        first=products_of(first),
        second=products_of(second),
    )
    feed_forward.forward = partial(_forward, feed_forward, first, second, parts)


def _forward(
    feed_forward: FeedForward,
    first: Adapter,
    second: Adapter,
    parts: _Parts,
    hidden_states: torch.Tensor,
    **_ignored: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[T, B, hidden] → the same and the bias that is still to add."""
    up, down = cast("Any", feed_forward.linear_fc1), cast("Any", feed_forward.linear_fc2)
    x = hidden_states.flatten(0, -2)
    # As it is now: where weights are shared out over ranks it is gathered each time.
    parts = replace(parts, bias=up.bias)
    out = _FusedMlp.apply(x, up.weight, first.A, first.B, down.weight, second.A, second.B, parts)
    return cast("torch.Tensor", out).view(hidden_states.shape), down.bias


class _FusedMlp(torch.autograd.Function):
    """linear_fc2(activate(linear_fc1(x))), both with adapters: [T, hidden] → [T, hidden]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        up: torch.Tensor,
        up_a: torch.Tensor,
        up_b: torch.Tensor,
        down: torch.Tensor,
        down_a: torch.Tensor,
        down_b: torch.Tensor,
        parts: _Parts,
    ) -> torch.Tensor:
        wide, up_low = parts.first.forward(x, _weights(up, up_a, up_b))
        narrow = activate(parts.config, wide, parts.bias)
        out, down_low = parts.second.forward(narrow, _weights(down, down_a, down_b))
        ctx.parts = parts
        ctx.save_for_backward(x, wide, up, up_a, up_b, up_low, down, down_a, down_b, down_low)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, wide, up, up_a, up_b, up_low, down, down_a, down_b, down_low = ctx.saved_tensors
        parts: _Parts = ctx.parts
        with torch.enable_grad():
            leaf = wide.detach().requires_grad_()
            narrow = activate(parts.config, leaf, parts.bias)
        second = parts.second.backward(
            grad_outputs[0], narrow.detach(), down_low, _weights(down, down_a, down_b)
        )
        (grad_wide,) = torch.autograd.grad(narrow, leaf, second.x)
        first = parts.first.backward(
            grad_wide, x, up_low, _weights(up, up_a, up_b), needs_x=ctx.needs_input_grad[0]
        )
        return first.x, None, first.a, first.b, None, second.a, second.b, None


def _weights(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Weights:
    return Weights(weight=weight, bias=None, a=a, b=b)
