"""Self-attention of one layer: projections and head norms of megatron-core, rotation of our own."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from megatron.core.transformer.attention import SelfAttention

from llm_train.model.kernels import kernels_of
from llm_train.model.linears import ColumnLinear
from llm_train.model.norms import LateHeadNorm
from llm_train.model.rope import rotate


class Attention(SelfAttention):
    """SelfAttention whose rotation is `rotate`; `has_rope` False leaves positions out.

    Layers may share keys and values, as they are projected: one that `lends` has them as its third
    result, [T, B, groups, 2 · D], one that `borrows` is given them and projects queries alone.
    """

    def __init__(
        self,
        *args: Any,
        has_rope: bool = True,
        is_interleaved: bool = False,
        lends: bool = False,
        borrows: bool = False,
        has_qkv_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.has_rope = has_rope
        self.is_interleaved = is_interleaved
        self.lends = lends
        if borrows:
            self.linear_q = ColumnLinear(
                self.config.hidden_size,
                self.query_projection_size,
                config=self.config,
                init_method=self.config.init_method,
                has_bias=has_qkv_bias,
                gather_output=False,
                skip_bias_add=False,
            )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # no inference, no caches
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: object = None,
        lent: torch.Tensor | None = None,
        **_ignored: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """[T, B, hidden] → the same and the bias that is still to add, and what it lends."""
        has_gate = self.config.attention_output_gate
        gate = list[torch.Tensor]()
        if lent is not None:
            query, (key, value) = self._query(hidden_states), lent.chunk(2, -1)
        else:
            query, key, value, *gate = cast(
                "tuple[torch.Tensor, ...]",
                self.get_query_key_value_tensors(hidden_states, output_gate=has_gate),
            )
        if self.lends:
            lent = torch.cat([key, value], -1)
            key, value = lent.chunk(2, -1)
        if self.has_rope and rotary_pos_emb is not None:
            turn = partial(
                rotate,
                table=rotary_pos_emb,
                is_interleaved=self.is_interleaved,
                kernels=kernels_of(self.config),
            )
            query, key = turn(query), turn(key)
        query, key = _late(self.q_layernorm, query), _late(self.k_layernorm, key)
        is_recomputed = self.checkpoint_core_attention and self.training
        attend = self._checkpointed_attention_forward if is_recomputed else self.core_attention
        out = cast("Callable[..., torch.Tensor]", attend)(
            query, key, value, attention_mask, packed_seq_params=packed_seq_params
        )
        if has_gate:
            out = out * torch.sigmoid(gate[0].reshape(out.shape))
        return *self.linear_proj(out), *((lent,) if self.lends else ())

    def _query(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, B, heads / tp, D] of a layer that has no keys and values of its own."""
        query, _ = self.linear_q(hidden)
        return query.unflatten(-1, (-1, self.hidden_size_per_attention_head))


def _late(norm: object, x: torch.Tensor) -> torch.Tensor:
    return norm.late(x) if isinstance(norm, LateHeadNorm) else x
