"""megatron-core's router with our choice of experts."""

from typing import Any, cast

import torch
from megatron.core.transformer.moe.moe_utils import (
    apply_router_token_dropping,
    compute_routing_scores_for_aux_loss,
)
from megatron.core.transformer.moe.router import TopKRouter

from llm_train import arch
from llm_train.model.routing import choose_experts


class Router(TopKRouter):
    """TopKRouter that chooses as `moe.router` of arch.json says; its losses and dropping stay."""

    def __init__(self, *args: Any, facts: arch.Router, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.facts = facts

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, B, E] logits → weights and choice, both [T · B, E]."""
        tokens, batch, experts = logits.shape
        flat = logits.reshape(-1, experts)
        padding = None if padding_mask is None else padding_mask.reshape(-1)
        flat = cast("torch.Tensor", self.apply_z_loss(flat, padding_mask=padding))
        weights, chosen = choose_experts(flat, self.facts, top_k=self.topk, bias=self.expert_bias)
        if self.config.moe_expert_capacity_factor is not None:
            weights, chosen = apply_router_token_dropping(
                weights,
                chosen,
                router_topk=self.topk,
                capacity_factor=self.config.moe_expert_capacity_factor,
                drop_policy=self.config.moe_token_drop_policy,
                pad_to_capacity=self.config.moe_pad_expert_input_to_capacity,
            )
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            weights = self._balance(flat, weights, tokens, batch, padding)
        self._apply_expert_bias(chosen)
        return weights, chosen

    def _balance(
        self,
        flat: torch.Tensor,
        weights: torch.Tensor,
        tokens: int,
        batch: int,
        padding: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attach the balancing losses that the config asks for."""
        choice, scores = compute_routing_scores_for_aux_loss(
            flat, self.topk, self.score_function, fused=False, padding_mask=padding
        )
        masked = {"with_padding_mask": padding is not None}
        weights = self._apply_aux_loss(weights, scores, choice, **masked)
        weights = self._apply_seq_aux_loss(weights, scores, choice, tokens, batch, **masked)
        return self._apply_global_aux_loss(weights, scores, choice, **masked)
