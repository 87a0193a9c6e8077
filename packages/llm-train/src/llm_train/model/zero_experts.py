"""A mixture of experts some of which return their input (LongCat-Flash, arXiv 2509.01322, 2.1)."""

from typing import cast

import torch
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.moe.moe_layer import MoELayer


class ZeroExpertMixture(MoELayer):
    """megatron-core's mixture, whose router has more choices than there are experts.

    The choices behind the experts return the token itself, times its weight. They are computed
    where the token lies: the dispatcher sees experts alone.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        intermediate_tensors: None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """[T, B, hidden] (a slice of T under sequence parallel) → the same; no bias."""
        assert intermediate_tensors is None, "nothing here is captured in graphs"
        padding = None if padding_mask is None else padding_mask.transpose(0, 1).bool()
        if self.moe_layer_recompute and self.training:
            out = cast("torch.Tensor", checkpoint(self._mix, False, hidden_states, padding))
        else:
            out = self._mix(hidden_states, padding)
        return out, None

    def _mix(self, hidden_TBH: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        shared = self.shared_experts_compute(hidden_TBH)
        weights, chosen = self.route(hidden_TBH, padding)
        experts = self.config.num_moe_experts
        sent, probs = self.preprocess(
            hidden_TBH, weights[:, :experts].contiguous(), chosen[:, :experts].contiguous()
        )
        out, _ = self.routed_experts_compute(*self.dispatch(sent, probs))
        out = self.postprocess(self.combine(out), shared)
        kept_TB1 = weights[:, experts:].sum(-1).view(*hidden_TBH.shape[:-1], 1)
        return out + (hidden_TBH * kept_TB1).to(out.dtype)
