"""megatron-core's mixture of experts, its tokens sorted by fused operators where a run has some."""

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.kernels import Kernels
from llm_train.model.kernels import kernels_of

# N tokens of this rank, each sent to K of E experts; H their hidden size


class Mixture(MoELayer):
    """MoELayer whose all-to-all sorts tokens with the run's operators, if none are dropped."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MoESubmodules | None = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        groups = pg_collection or get_default_pg_collection()
        super().__init__(config, submodules, layer_number, groups)
        kernels = kernels_of(config)
        is_alltoall = config.moe_token_dispatcher_type == "alltoall"
        if kernels is None or not is_alltoall or config.moe_expert_capacity_factor is not None:
            return
        self.token_dispatcher = SortingDispatcher(
            self.num_local_experts,
            self.local_expert_indices,
            config=config,
            pg_collection=groups,
            kernels=kernels,
        )
        if self.use_shared_expert and self.shared_expert_overlap:
            self.token_dispatcher.set_shared_experts(self.shared_experts)


class SortingDispatcher(MoEAlltoAllTokenDispatcher):
    """megatron-core's all-to-all; tokens are sorted by expert, and back, by two operators.

    Every token must go to the same number of experts.
    """

    def __init__(self, *args: Any, kernels: Kernels, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kernels = kernels

    def dispatch_preprocess(
        self, hidden_states: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[…, H] tokens and [N, E] choices and weights → copies [N · K, H], weights [N · K]."""
        self.hidden_shape = hidden_states.shape
        self.probs, self.routing_map = probs, routing_map
        self.tokens_per_expert = self.preprocess(routing_map)
        if self.shared_experts is not None:
            self.shared_experts.pre_forward_comm(hidden_states)
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize(
            "before_permutation_1", self.tokens_per_expert
        )
        experts_NK = routing_map.int().topk(self.config.moe_router_topk, dim=-1).indices
        tokens_NH = hidden_states.reshape(-1, self.hidden_shape[-1])
        copies, self.rows = self.kernels.permute(tokens_NH, experts_NK)
        weights = probs.gather(1, experts_NK).flatten()
        return copies, torch.zeros_like(weights).scatter(0, self.rows.long(), weights)

    def combine_postprocess(self, permutated_local_input_tokens: torch.Tensor) -> torch.Tensor:
        """Copies [N · K, H], weighted by the experts already → their sums […, H]."""
        if self.shared_experts is not None:
            self.shared_experts.linear_fc2_forward(permutated_local_input_tokens)
            self.shared_experts.post_forward_comm()
        copies = permutated_local_input_tokens
        ones_NK = copies.new_ones(len(self.rows), 1).view(-1, self.config.moe_router_topk)
        out = self.kernels.unpermute(copies, self.rows, ones_NK).view(self.hidden_shape)
        return out if self.shared_experts is None else out + self.shared_experts.get_output()
