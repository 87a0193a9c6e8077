"""The dense feed-forward of one layer, its activation computed again in backward when told to."""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.config import RecomputeModule
from llm_train.model.kernels import kernels_of
from llm_train.model.recompute import Recomputed, is_recomputed


class FeedForward(MLP):
    """megatron-core's MLP; what lies between its linears is `activate`."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # not an expert: no scales
        self, hidden_states: torch.Tensor, **_ignored: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T, B, hidden] → the same and the bias that is still to add."""
        wide, bias = self.linear_fc1(hidden_states)
        is_on = self.training and is_recomputed(self.config, RecomputeModule.ACTIVATION)
        activation = Recomputed(is_on=is_on)
        narrow = activation.call(partial(activate, self.config), wide, bias)
        out, out_bias = self.linear_fc2(narrow)
        activation.drop_before(out)
        return out, out_bias


def activate(
    config: TransformerConfig, wide: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """act(gate) · (up + offset), or act alone: [..., 2 · ffn] or [..., ffn] → [..., ffn]."""
    if bias is not None:
        wide = wide + bias
    if not config.gated_linear_unit:
        return config.activation_func(wide)
    limit, offset = config.activation_func_clamp_value, config.glu_linear_offset
    if config.activation_func is F.silu and limit is None and offset == 0.0:
        kernels = kernels_of(config)
        # Experts of a rank may get no token at all, which fused operators refuse.
        if kernels is not None and wide.numel():
            return kernels.swiglu(wide)
        return cast("torch.Tensor", _SwiGlu.apply(wide))
    gate, up = torch.chunk(wide, 2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    if offset != 0.0:
        up = up + offset
    return cast("torch.Tensor", config.activation_func(gate) * up)


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up; the gradients of both are written where they lie side by side."""

    @staticmethod
    def forward(ctx: Any, wide: torch.Tensor) -> torch.Tensor:
        gate, up = wide.chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.save_for_backward(wide, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        wide, active = ctx.saved_tensors
        gate, up = wide.chunk(2, dim=-1)
        grad_wide = torch.empty_like(wide)
        grad_gate, grad_up = grad_wide.chunk(2, dim=-1)
        torch.mul(grad_outputs[0], active, out=grad_up)
        grad_active = grad_outputs[0] * up
        torch.ops.aten.silu_backward.grad_input(grad_active, gate, grad_input=grad_gate)
        return grad_wide
