"""Mixture-of-experts feed-forwards: routed experts, zero experts and shared ones.

Of several ranks each has a part of every expert, and chooses for itself, as the others do.
"""

import torch
from torch import Tensor

from llm_infer.arch import Arch
from llm_infer.model.feed_forward import FeedForward
from llm_infer.model.parameters import Parameters
from llm_infer.model.router import route
from llm_infer.model.rowwise import by_row


class Experts:
    """arch.json's `moe`, under the name `at`."""

    def __init__(self, arch: Arch, parameters: Parameters, at: str) -> None:
        facts = arch.moe
        assert facts is not None, "arch.json: a layer of experts without its facts"
        self._facts, self._group = facts, parameters.group
        self._router = parameters.full_linear(f"{at}.router")
        self._bias = None
        if facts.router.bias:
            self._bias = parameters.in_float32(f"{at}.router.expert_bias")
        self._experts = [
            FeedForward(facts, parameters, f"{at}.experts.local_experts.{expert}", sums=False)
            for expert in range(facts.experts)
        ]
        self._shared = self._gate = None
        if facts.shared is not None:
            self._shared = FeedForward(facts, parameters, f"{at}.shared_experts", sums=False)
            if facts.shared.gated:
                weight = parameters.tensor(f"{at}.shared_experts.gate_weight")
                self._gate = parameters.full_linear_of(weight)

    def __call__(self, x_TH: Tensor) -> Tensor:
        """[T, H] from [T, H]; a token's experts are added in the order of their numbers."""
        logits_TE = self._router(x_TH).float()
        weights_TK, chosen_TK = route(
            logits_TE, self._bias, top_k=self._facts.top_k, router=self._facts.router
        )
        weights_TK = weights_TK.to(x_TH.dtype)
        out_TH = torch.zeros_like(x_TH)
        for expert in chosen_TK.unique().tolist():
            is_zero = expert >= len(self._experts)
            if is_zero and self._group.rank:
                continue
            tokens, choices = (chosen_TK == expert).nonzero(as_tuple=True)
            x = x_TH[tokens]
            # Zero experts come after the real ones, and return their input: on one rank, once.
            y = x if is_zero else self._experts[expert](x)
            out_TH.index_add_(0, tokens, y * weights_TK[tokens, choices, None])
        return self._group.summed(out_TH if self._shared is None else out_TH + self._always(x_TH))

    def _always(self, x_TH: Tensor) -> Tensor:
        assert self._shared is not None
        out_TH = self._shared(x_TH)
        return out_TH if self._gate is None else out_TH * by_row(torch.sigmoid, self._gate(x_TH))
