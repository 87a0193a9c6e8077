"""Gated delta nets (https://arxiv.org/abs/2412.06464) on tensor-parallel ranks, heads cut."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.arch import Gdn
from llm_train.config import RecomputeModule
from llm_train.model.first_decays import first_log_rates, first_step_biases
from llm_train.model.linears import output_linear
from llm_train.model.norms import norm_parameter
from llm_train.model.recompute import again
from llm_train.model.recurrence import gated_delta_rule
from llm_train.model.sections import (
    CausalConv,
    CutModule,
    SectionedLinear,
    Sections,
    cut_parameter,
)

# Under the root of the keys' and queries' lengths (flash-linear-attention's l2norm).
LENGTH_EPS = 1e-6


class GatedDeltaNet(CutModule):
    """A gated delta net with megatron-core's parameter names."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, *, gdn: Gdn, **_ignored: Any
    ) -> None:
        super().__init__(config=config)
        self.gdn, self.layer_number = gdn, layer_number
        key, value = gdn.key_heads * gdn.key_head_dim, gdn.value_heads * gdn.value_head_dim
        rows = Sections(
            sizes=(key, key, value, value, gdn.value_heads, gdn.value_heads),
            labels=("query", "key", "value", "z", "beta", "alpha"),
        )
        mixed = Sections(sizes=rows.sizes[:3], labels=rows.labels[:3])
        self.in_proj = SectionedLinear(config, config.hidden_size, rows, has_bias=False)
        self.conv1d = CausalConv(config, mixed, kernel=gdn.conv_kernel, has_bias=False)
        self.dt_bias = cut_parameter(config, first_step_biases(gdn.value_heads))
        self.A_log = cut_parameter(config, first_log_rates(gdn.value_heads))
        self.out_norm = GatedNorm(config, gdn.value_head_dim, config.layernorm_epsilon)
        self.out_proj = output_linear(config, value, has_bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        packed_seq_params: object = None,
        **_ignored: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T, B, hidden] (a slice of T under sequence parallel) → the same, and no bias."""
        assert packed_seq_params is None, "GatedDeltaNet takes no packed sequences"
        projected, _ = self.in_proj(hidden_states)
        *mixed, z, beta, alpha = self.in_proj.split(projected)
        query, key, value = self.conv1d(torch.cat(mixed, dim=-1))
        query, key = (
            _unit(x.unflatten(-1, (-1, self.gdn.key_head_dim)).float()) for x in (query, key)
        )
        out = again(
            self,
            RecomputeModule.CORE_ATTENTION,
            gated_delta_rule,
            query * self.gdn.key_head_dim**-0.5,
            key,
            value.unflatten(-1, (-1, self.gdn.value_head_dim)),
            -self.A_log.float().exp() * F.softplus(alpha.float() + self.dt_bias),
            beta.float().sigmoid(),
        )
        gated = self.out_norm(out, z.unflatten(-1, (-1, self.gdn.value_head_dim)))
        return self.out_proj(gated.to(projected.dtype).flatten(-2))


class GatedNorm(torch.nn.Module):
    """RMS norm of each head, times SiLU of the gate; its weight is never zero-centred."""

    def __init__(self, config: TransformerConfig, size: int, eps: float) -> None:
        super().__init__()
        self.eps, self.is_summed_later = eps, config.sequence_parallel
        self.weight = norm_parameter(config, 1.0, size)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """[..., size] in fp32."""
        weight = self.weight
        if not self.is_summed_later:
            # Each rank sees its own heads only: megatron-core sums such gradients where sequence
            # parallel is on, and nowhere else.
            weight = cast("torch.Tensor", copy_to_tensor_model_parallel_region(weight))
        normed = F.rms_norm(x.float(), (x.shape[-1],), weight.float(), self.eps)
        return normed * F.silu(gate.float())


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)
