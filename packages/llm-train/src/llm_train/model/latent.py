"""Multi-head latent attention (https://arxiv.org/abs/2405.04434) on tensor-parallel ranks.

Keys and values come from one small vector a token that every rank holds; so do the rotated parts of
the keys. Without sequence parallel their gradients are summed where they enter a rank's own heads.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from megatron.core.tensor_parallel import (
    checkpoint,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.arch import Mla
from llm_train.config import RecomputeModule
from llm_train.model.core_attention import CoreAttention
from llm_train.model.indexer import Choice, Indexer
from llm_train.model.indexer_loss import Attended, learn
from llm_train.model.kernels import kernels_of
from llm_train.model.linears import ColumnLinear, ReplicatedLinear, output_linear
from llm_train.model.norms import RMSNorm
from llm_train.model.packed_rows import PackedRows
from llm_train.model.recompute import Recomputed, is_recomputed
from llm_train.model.rope import rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """What the layer is told beside the sizes: rotation, window, whether it chooses keys."""

    is_interleaved: bool
    has_rope: bool
    window: int | None
    has_indexer: bool


class LatentAttention(MegatronModule):
    """Latent attention with megatron-core's parameter names.

    In a model with indexers a layer without one attends to the keys that a layer before it chose.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *,
        mla: Mla,
        options: LatentOptions,
        **_ignored: Any,
    ) -> None:
        super().__init__(config=config)
        self.mla, self.options, self.layer_number = mla, options, layer_number
        hidden, head = config.hidden_size, mla.qk_nope_head_dim + mla.qk_rope_head_dim
        if mla.q_lora_rank is None:
            self.linear_q_proj = self._column(hidden, mla.heads * head)
        else:
            self.linear_q_down_proj = self._down(hidden, mla.q_lora_rank)
            self.q_layernorm = RMSNorm(config, mla.q_lora_rank, mla.norm_eps)
            self.linear_q_up_proj = self._column(mla.q_lora_rank, mla.heads * head)
        self.linear_kv_down_proj = self._down(hidden, mla.kv_lora_rank + mla.qk_rope_head_dim)
        self.kv_layernorm = RMSNorm(config, mla.kv_lora_rank, mla.norm_eps)
        rows = mla.heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        self.linear_kv_up_proj = self._column(mla.kv_lora_rank, rows)
        self.core_attention = CoreAttention(
            config,
            layer_number,
            softmax_scale=mla.scale or head**-0.5,
            window=options.window,
            indexer=Indexer(config, mla, has_rope=options.has_rope)
            if options.has_indexer
            else None,
        )
        self.linear_proj = output_linear(config, mla.heads * mla.v_head_dim, has_bias=mla.out_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: PackedRows | None = None,
        lent: torch.Tensor | None = None,
        **_ignored: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """[T, B, hidden] (a slice of T under sequence parallel) → the same, and the bias to add.

        With an indexer also the keys [B, T, T] that each query attends to, None for all; a layer
        that borrows them is given them as `lent`.
        """
        mla = self.mla
        q_latent = hidden_states
        if mla.q_lora_rank is not None:
            q_latent = self.linear_q_down_proj(hidden_states)
        kv_latent, k_rope = self.linear_kv_down_proj(hidden_states).split(
            [mla.kv_lora_rank, mla.qk_rope_head_dim], dim=-1
        )
        up = Recomputed(is_on=self._is_recomputed(RecomputeModule.MLA_UP_PROJ))
        query, key, value = up.call(
            partial(self._up, rotary_pos_emb), q_latent, kv_latent, self._for_every_rank(k_rope)
        )
        choice, allowed = None, lent
        if self.core_attention.indexer is not None:
            choice = self._choose(hidden_states, q_latent, rotary_pos_emb, packed_seq_params)
            allowed = choice.allowed
        attend = partial(
            self.core_attention,
            attention_mask=attention_mask,
            packed_seq_params=packed_seq_params,
            allowed=allowed,
        )
        if self._is_recomputed(RecomputeModule.CORE_ATTENTION):
            out = cast("torch.Tensor", checkpoint(attend, False, query, key, value))
        else:
            out = attend(query, key, value)
        if choice is not None:
            out = self._learn(choice, out, query.detach(), key.detach())
        up.drop_before(out)
        return *self.linear_proj(out), *((allowed,) if choice is not None else ())

    def _choose(
        self,
        hidden_states: torch.Tensor,
        q_latent: torch.Tensor,
        rotary_pos_emb: torch.Tensor | None,
        packed: PackedRows | None,
    ) -> Choice:
        """The keys that the indexer lets queries attend to."""
        assert self.core_attention.indexer is not None
        if self.mla.q_lora_rank is not None:
            with torch.no_grad():
                q_latent = self.q_layernorm(q_latent)
        return self.core_attention.indexer(hidden_states, q_latent, rotary_pos_emb, packed)

    def _learn(
        self, choice: Choice, out: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        """`out`, unchanged; with the indexer's loss behind it where there is one."""
        indexer, scale = self.core_attention.indexer, self.core_attention.softmax_scale
        assert indexer is not None
        assert scale is not None
        if not indexer.is_learning:
            return out
        return learn(indexer, out, Attended(query=query, key=key, scale=scale, choice=choice))

    def _up(
        self,
        rotary_pos_emb: torch.Tensor | None,
        q_latent: torch.Tensor,
        kv_latent: torch.Tensor,
        k_rope: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries and keys, and values, of this rank's heads: [T, B, heads / tp, size]."""
        mla = self.mla
        key_value, _ = self.linear_kv_up_proj(self.kv_layernorm(kv_latent) * mla.kv_scale)
        heads = key_value.unflatten(-1, (-1, mla.qk_nope_head_dim + mla.v_head_dim))
        k_plain, value = heads.split([mla.qk_nope_head_dim, mla.v_head_dim], dim=-1)
        q_plain, q_rope = self._query(q_latent).split(
            [mla.qk_nope_head_dim, mla.qk_rope_head_dim], dim=-1
        )
        k_rope = k_rope[:, :, None, :]
        if self.options.has_rope and rotary_pos_emb is not None:
            turn = partial(
                rotate,
                table=rotary_pos_emb,
                is_interleaved=self.options.is_interleaved,
                kernels=kernels_of(self.config),
            )
            q_rope, k_rope = turn(q_rope), turn(k_rope)
        key = torch.cat([k_plain, k_rope.expand(*k_plain.shape[:-1], -1)], dim=-1)
        return torch.cat([q_plain, q_rope], dim=-1), key, value

    def _query(self, latent: torch.Tensor) -> torch.Tensor:
        """[T, B, heads / tp, qk_nope_head_dim + qk_rope_head_dim]."""
        if self.mla.q_lora_rank is None:
            flat, _ = self.linear_q_proj(latent)
        else:
            flat, _ = self.linear_q_up_proj(self.q_layernorm(latent))
        size = self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim
        return flat.unflatten(-1, (-1, size)) * self.mla.q_scale

    def _is_recomputed(self, part: RecomputeModule) -> bool:
        return self.training and is_recomputed(self.config, part)

    def _for_every_rank(self, x: torch.Tensor) -> torch.Tensor:
        """The whole sequence, its gradient the sum over the ranks' heads."""
        if self.config.sequence_parallel:
            return cast("torch.Tensor", gather_from_sequence_parallel_region(x))
        return cast("torch.Tensor", copy_to_tensor_model_parallel_region(x))

    def _column(self, in_size: int, out_size: int) -> ColumnLinear:
        return ColumnLinear(
            in_size,
            out_size,
            config=self.config,
            init_method=self.config.init_method,
            has_bias=False,
            gather_output=False,
            skip_bias_add=False,
        )

    def _down(self, in_size: int, out_size: int) -> ReplicatedLinear:
        return ReplicatedLinear(self.config, in_size, out_size, has_bias=self.mla.down_bias)
