"""The dense feed-forward of one layer, its activation computed again in backward when told to."""

from functools import partial
from typing import Any, cast

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.config import RecomputeModule
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
    gate, up = torch.chunk(wide, 2, dim=-1)
    if (limit := config.activation_func_clamp_value) is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return cast("torch.Tensor", config.activation_func(gate) * (up + config.glu_linear_offset))
