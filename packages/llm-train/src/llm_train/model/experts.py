"""The experts of one rank: megatron-core's parameters and checkpoint keys, our own computation.

M tokens sorted by expert, F an expert's share of its hidden size, H the model's.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from megatron.core.transformer.moe.experts import SequentialMLP

from llm_train.config import RecomputeModule
from llm_train.model.feed_forward import activate
from llm_train.model.grouped import grouped_linear, one_by_one, products_for
from llm_train.model.kernels import kernels_of
from llm_train.model.recompute import Recomputed, is_recomputed


class Experts(SequentialMLP):
    """activation(x W1ᵀ + b1) · p W2ᵀ + p · b2 for every token x and its weight p.

    With `moe_grouped_gemm` all experts are one product.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tensor_parallel_size: int = self.tp_group.size()
        # Low-rank adapters of linear_fc1 and linear_fc2, where there are any.
        self.adapters = torch.nn.ModuleDict()
        self._set_gradient_groups()

    def forward(
        self,
        permuted_local_hidden_states: torch.Tensor,
        tokens_per_expert: torch.Tensor,
        permuted_probs: torch.Tensor,
    ) -> tuple[torch.Tensor, None]:
        """[M, H] → [M, H], a part of the sum over the expert's tensor-parallel ranks; no bias."""
        counts: list[int] = tokens_per_expert.tolist()
        hidden = self._linear("linear_fc1", permuted_local_hidden_states, counts)
        bias = self._biases("linear_fc1", counts)
        if bias is not None:
            hidden = hidden + bias
        is_on = self.training and is_recomputed(self.config, RecomputeModule.ACTIVATION)
        activation = Recomputed(is_on=is_on)
        active = activation.call(self._activate, hidden, permuted_probs)
        out = self._linear("linear_fc2", active, counts)
        activation.drop_before(out)
        bias = self._biases("linear_fc2", counts)
        if bias is not None:
            weighted = self._share(bias) * permuted_probs.unsqueeze(-1)
            out = out + weighted.to(out.dtype)
        return out, None

    def _linear(self, name: str, tokens: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        weights = [linear.weight for linear in self._each(name)]
        kernels = kernels_of(self.config)
        if not self.config.moe_grouped_gemm:
            out = one_by_one(tokens, weights, counts)
        elif kernels is None:
            products = products_for(tokens.dtype, tokens.device.type)
            out = grouped_linear(products, tokens, weights, counts)
        else:
            # The stack is kept for backward: it has no other way to the experts' own weights.
            stack_EKN = torch.stack(weights).transpose(1, 2)
            out = kernels.grouped_matmul(tokens, stack_EKN, counts)
        return out + self.adapters[name](tokens, counts) if name in self.adapters else out

    def _biases(self, name: str, counts: Sequence[int]) -> torch.Tensor | None:
        """[M, N]: the bias that every token's expert adds."""
        biases = [linear.bias for linear in self._each(name) if linear.bias is not None]
        if not biases:
            return None
        stacked = torch.stack(tuple(biases))
        return stacked.repeat_interleave(torch.tensor(counts, device=stacked.device), dim=0)

    def _activate(self, hidden: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """[M, F or 2F] → [M, F], weighted."""
        active = activate(self.config, hidden, None)
        return (active * probs.unsqueeze(-1)).to(hidden.dtype)

    def _share(self, bias: torch.Tensor) -> torch.Tensor:
        """This rank's part of a bias that the sum over the ranks must hold once.

        Its gradient is that of the whole bias, for every rank keeps all of it.
        """
        if self.tensor_parallel_size == 1:
            return bias
        return bias.detach() / self.tensor_parallel_size + (bias - bias.detach())

    def _set_gradient_groups(self) -> None:
        """Tell megatron-core over which ranks these gradients are summed and counted.

        It goes by the expert-parallel size alone: experts that are cut otherwise than the rest of
        the model (TP 2 with whole experts, say) would be summed over the wrong ranks, silently.
        And it takes output biases for slices of the sequence under sequence parallel.
        """
        config = self.config
        is_apart = (
            config.expert_model_parallel_size > 1
            or self.tensor_parallel_size != config.tensor_model_parallel_size
        )
        for parameter in self.parameters():
            parameter.allreduce = not is_apart  # pyright: ignore[reportAttributeAccessIssue]
        for linear in self._each("linear_fc2"):
            if linear.bias is not None:
                linear.bias.sequence_parallel = False  # pyright: ignore[reportAttributeAccessIssue]
                # Whole experts differ from one tensor-parallel rank to the next.
                is_whole = self.tensor_parallel_size == 1
                linear.bias.tensor_model_parallel = is_whole  # pyright: ignore[reportAttributeAccessIssue]

    def _each(self, name: str) -> list[torch.nn.Linear]:
        """That linear of every expert: a weight [N, K] and a bias [N] or None."""
        linears = [expert.get_submodule(name) for expert in self.local_experts]
        return cast("list[torch.nn.Linear]", linears)
