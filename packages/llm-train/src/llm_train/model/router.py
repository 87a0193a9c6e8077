"""megatron-core's router with our choice of experts, and losses that no layout changes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    get_capacity,
    save_to_aux_losses_tracker,
)
from megatron.core.transformer.moe.router import TopKRouter

from llm_train import arch
from llm_train.config import DropPolicy
from llm_train.model.routing import balance_counts, balance_loss, choose_experts, drop_tokens

# megatron-core's kind of balancing loss → its name in the tracker, and whether it is made for each
# sequence by itself.
BALANCE_LOSSES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "aux_loss": ("load_balancing_loss", False),
        "seq_aux_loss": ("seq_load_balancing_loss", True),
    }
)
Z_LOSS = "z_loss"
# Counts and biases that lose their meaning below fp32.
_FP32_BUFFERS = ("expert_bias", "local_tokens_per_expert")


class Router(TopKRouter):
    """TopKRouter that chooses as `moe.router` of arch.json says; its expert biases stay.

    Choices that return their input (`zero_experts`) come behind the experts, and are balanced like
    them.
    """

    def __init__(self, *args: Any, facts: arch.Router, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.facts = facts
        if facts.zero_experts:
            self._add_choices(facts.zero_experts)
        if facts.linear_bias:
            self.bias = torch.nn.Parameter(torch.zeros_like(self.weight[:, 0]))
            self.bias.sequence_parallel = self.config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, B, E] logits → weights and choice, both [T · B, E]."""
        tokens, batch, experts = logits.shape
        flat = logits.reshape(-1, experts)
        valid = None if padding_mask is None else ~padding_mask.reshape(tokens, batch)
        flat = self.apply_z_loss(flat, padding_mask=padding_mask)
        weights, chosen = choose_experts(flat, self.facts, top_k=self.topk, bias=self.expert_bias)
        if self.config.moe_expert_capacity_factor is not None:
            weights, chosen = drop_tokens(
                weights,
                chosen,
                capacity=get_capacity(
                    num_tokens=len(flat) * self.topk,
                    num_experts=experts,
                    capacity_factor=self.config.moe_expert_capacity_factor,
                ),
                policy=DropPolicy(self.config.moe_token_drop_policy),
                is_filled_up=self.config.moe_pad_expert_input_to_capacity,
            )
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            weights = self._balance(flat.view(tokens, batch, experts), weights, valid)
        self._apply_expert_bias(chosen if valid is None else chosen & valid.reshape(-1, 1))
        return weights, chosen

    def apply_z_loss(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[N, E] logits, unchanged; backward adds that of coefficient · mean logsumexp² · tokens.

        megatron-core's own weighs it tp · cp times too little when the loss is per token.
        """
        coefficient = self.config.moe_z_loss_coeff
        if coefficient is None or not (self.training and torch.is_grad_enabled()):
            return logits
        squares = logits.float().logsumexp(-1).square()
        valid = None if padding_mask is None else ~padding_mask.reshape(-1)
        kept = torch.ones_like(squares) if valid is None else valid.float()
        total = (squares * kept).sum()
        mean = total / kept.sum().clamp(min=1.0)
        self._track(Z_LOSS, mean)
        return cast("torch.Tensor", MoEAuxLossAutoScaler.apply(logits, total * coefficient))

    def _balance(
        self, logits_TBE: torch.Tensor, weights: torch.Tensor, valid_TB: torch.Tensor | None
    ) -> torch.Tensor:
        """The weights, unchanged; backward adds that of the balancing losses the config asks for.

        Each rank of the group that shares a sequence adds its part of a loss, times the tokens of
        all: megatron-core's own take a rank's tokens, or a sequence's, and weigh too little.
        """
        scores, chosen, valid = balance_counts(logits_TBE, self.facts, self.topk, valid_TB)
        shared = torch.cat([chosen, valid[:, None]], dim=1)
        dist.all_reduce(shared, group=self.tp_cp_group)
        chosen, valid = shared[:, :-1], shared[:, -1]
        for kind, (name, is_by_sequence) in BALANCE_LOSSES.items():
            coefficient = self.get_aux_loss_coeff(kind)
            if coefficient > 0:
                loss = balance_loss(
                    scores, chosen, valid, top_k=self.topk, is_by_sequence=is_by_sequence
                )
                self._track(name, loss)
                weighted = loss * coefficient * valid.sum()
                weights = cast("torch.Tensor", MoEAuxLossAutoScaler.apply(weights, weighted))
        return weights

    def _add_choices(self, count: int) -> None:
        """Rows of the weight, and entries of what is counted, for choices beyond the experts."""
        more = self.weight.new_zeros(count, self.weight.shape[1])
        self.weight = torch.nn.Parameter(torch.cat([self.weight.detach(), more]))
        self.weight.sequence_parallel = self.config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
        for name in _FP32_BUFFERS:
            if (buffer := getattr(self, name)) is not None:
                setattr(self, name, torch.cat([buffer, buffer.new_zeros(count)]))

    def _track(self, name: str, loss: torch.Tensor) -> None:
        layers = self.config.num_layers + (self.config.mtp_num_layers or 0)
        assert self.layer_number is not None  # set by the layer
        save_to_aux_losses_tracker(name, loss, self.layer_number, layers)

    def _apply(self, fn: Any, recurse: bool = True) -> "Router":
        """Move as told, but keep what counts tokens in fp32 when the model becomes half."""
        kept = {name: getattr(self, name) for name in _FP32_BUFFERS}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if buffer is not None:
                setattr(self, name, buffer.to(getattr(self, name).device))
        return self
