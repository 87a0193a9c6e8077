"""Mamba2 mixers (https://arxiv.org/abs/2405.21060) on tensor-parallel ranks, groups cut."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.arch import Mamba2
from llm_train.config import RecomputeModule
from llm_train.model.first_decays import first_log_rates, first_step_biases
from llm_train.model.linears import output_linear
from llm_train.model.recompute import again
from llm_train.model.recurrence import CHUNK, selective_scan
from llm_train.model.sections import (
    CausalConv,
    CutModule,
    SectionedLinear,
    Sections,
    cut_parameter,
)


class MambaMixer(CutModule):
    """A Mamba2 mixer with megatron-core's parameter names."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, *, mamba: Mamba2, **_ignored: Any
    ) -> None:
        super().__init__(config=config)
        self.mamba, self.layer_number = mamba, layer_number
        inner, states = mamba.heads * mamba.head_dim, mamba.groups * mamba.state_dim
        rows = Sections(
            sizes=(inner, inner, states, states, mamba.heads), labels=("z", "x", "B", "C", "dt")
        )
        mixed = Sections(sizes=rows.sizes[1:4], labels=rows.labels[1:4])
        self.in_proj = SectionedLinear(config, config.hidden_size, rows, has_bias=mamba.proj_bias)
        self.conv1d = CausalConv(config, mixed, kernel=mamba.conv_kernel, has_bias=mamba.conv_bias)
        self.dt_bias = cut_parameter(config, first_step_biases(mamba.heads))
        self.A_log = cut_parameter(config, first_log_rates(mamba.heads))
        self.D = cut_parameter(config, torch.ones(mamba.heads))
        if mamba.gated_norm:
            self.norm = GroupNorm(config, mamba)
        self.out_proj = output_linear(config, inner, has_bias=mamba.proj_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        packed_seq_params: object = None,
        **_ignored: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T, B, hidden] (a slice of T under sequence parallel) → the same, and the bias to add."""
        assert packed_seq_params is None, "MambaMixer takes no packed sequences"
        projected, _ = self.in_proj(hidden_states)
        z, *mixed, dt = self.in_proj.split(projected)
        x, b, c = self.conv1d(torch.cat(mixed, dim=-1))
        x = x.unflatten(-1, (-1, self.mamba.head_dim)).float()
        b, c = (one.unflatten(-1, (-1, self.mamba.state_dim)) for one in (b, c))
        out = again(
            self,
            RecomputeModule.CORE_ATTENTION,
            partial(selective_scan, chunk=min(self.mamba.chunk, CHUNK)),
            x,
            F.softplus(dt.float() + self.dt_bias),
            -self.A_log.float().exp(),
            b,
            c,
        )
        out = (out + self.D.float()[:, None] * x).flatten(-2) * F.silu(z.float())
        if self.mamba.gated_norm:
            out = self.norm(out)
        return self.out_proj(out.to(projected.dtype))


class GroupNorm(CutModule):
    """RMS norm of each group of heads by itself; its weight is never zero-centred."""

    def __init__(self, config: TransformerConfig, mamba: Mamba2) -> None:
        super().__init__(config)
        self.eps = config.layernorm_epsilon
        self.group_size = mamba.heads * mamba.head_dim // mamba.groups
        self.weight = cut_parameter(config, torch.ones(mamba.heads * mamba.head_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inner / tp] in fp32."""
        groups = x.unflatten(-1, (-1, self.group_size))
        normed = F.rms_norm(groups, (self.group_size,), None, self.eps)
        return normed.flatten(-2) * self.weight.float()
