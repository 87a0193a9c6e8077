"""Multi-token prediction (DeepSeek-V3, https://arxiv.org/abs/2412.19437, section 2.2).

Layer k joins what layer k - 1 made of token i (layer 0 is the main model) with the embedding of
token i + k, and predicts token i + k + 1 through the model's own output layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.tensor_parallel import (
    checkpoint,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from llm_train.config import RecomputeMethod
from llm_train.model.draws import own_draws
from llm_train.model.learned import LearnedTokens
from llm_train.model.linears import ColumnLinear
from llm_train.model.norms import Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What layer k is given of a micro-batch: everything k tokens further, [B, T] each.

    Losses are of the `learned` tokens alone; None = of all.
    """

    tokens: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    learned: LearnedTokens | None = None


class PredictionLayer(MegatronModule):
    """One prediction layer, with megatron-core's parameter names; `layer_number` counts from 1."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *,
        transformer_layer: ModuleSpec,
        vp_stage: int | None = None,
        **_ignored: Any,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        hidden, eps = config.hidden_size, config.layernorm_epsilon
        self.enorm = Norm(config, hidden, eps)
        self.hnorm = Norm(config, hidden, eps)
        self.eh_proj = ColumnLinear(
            2 * hidden,
            hidden,
            config=config,
            init_method=config.init_method,
            has_bias=False,
            gather_output=False,
            skip_bias_add=False,
        )
        # The layer adds what its chunk begins with; routers are told apart by the sum.
        behind = config.num_layers - get_transformer_layer_offset(config, vp_stage)
        self.transformer_layer = build_module(
            transformer_layer, config=config, vp_stage=vp_stage, layer_number=behind + layer_number
        )
        self.final_layernorm = Norm(config, hidden, eps)

    def forward(
        self, hidden: torch.Tensor, embedded: torch.Tensor, shared: Mapping[str, Any]
    ) -> torch.Tensor:
        """Normed hidden states and embeddings [T, B, hidden] → normed hidden states, the same.

        All are a slice of T under sequence parallel. `shared` is what every layer is told.
        """

        def predict(hidden: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
            joined = self._join(self.enorm(embedded), self.hnorm(hidden))
            out, _ = self.transformer_layer(hidden_states=joined, **shared)  # pyright: ignore[reportCallIssue]  # a module
            return self.final_layernorm(out)

        # Slices of a sequence draw their dropout apart, as in megatron-core's block of layers.
        with own_draws(is_on=self.config.sequence_parallel):
            # `block` counts layers of the decoder alone.
            if self.training and self.config.recompute_method == RecomputeMethod.UNIFORM.value:
                return cast("torch.Tensor", checkpoint(predict, False, hidden, embedded))
            return predict(hidden, embedded)

    def _join(self, embedded: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Two vectors a token as one."""
        joined, _ = self.eh_proj(torch.cat([embedded, hidden], dim=-1))
        joined = gather_from_tensor_model_parallel_region(joined)
        if self.config.sequence_parallel:
            joined = scatter_to_sequence_parallel_region(joined)
        return cast("torch.Tensor", joined)
