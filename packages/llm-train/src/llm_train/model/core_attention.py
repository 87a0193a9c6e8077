"""Causal attention itself, over heads that are already projected, normed and rotated."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from llm_train.kernels import SoftmaxAttention
from llm_train.model.context_parallel.allgather import gather
from llm_train.model.context_parallel.blocks import Scoring
from llm_train.model.context_parallel.place import context_group, context_rank, ring_of
from llm_train.model.context_parallel.ring import ring_attention
from llm_train.model.context_parallel.spans import held, plan, ring_plans
from llm_train.model.context_parallel.ulysses import heads_for_tokens, tokens_for_heads
from llm_train.model.draws import own_draws
from llm_train.model.indexer import Indexer
from llm_train.model.kernels import kernels_of
from llm_train.model.packed_rows import PackedRows

# Scores of no more than tile × tile tokens lie in memory at a time.
_TILE = 1024
_SMALLEST_WINDOW_TILE = 256


class CoreAttention(torch.nn.Module):
    """Causal attention over [T, B, H, D], T the tokens of this context-parallel rank.

    `window` counts the tokens a query sees, itself included; None = all before it. `softcap` bounds
    scores by softcap · tanh(score / softcap). `sinks`: a learned score a head that takes part in
    the softmax and gives nothing. `alibi_heads`: heads of the whole model, biased by distance.
    `indexer` is kept here for its place among megatron-core's names; who calls it says `allowed`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        softmax_scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        alibi_heads: int | None = None,
        indexer: Indexer | None = None,
        **_ignored: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.window = window
        self.softcap = softcap
        self.alibi_heads = alibi_heads
        self.softmax_offset = _sink_parameter(config) if sinks else None
        self.indexer = indexer

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: object = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: object = None,
        allowed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # T tokens, B batch, H query heads (G key and value heads), D head dim, E value head dim
        # `allowed` [B, T, T] is all that queries see: causality and documents are in it already.
        assert attention_mask is None, "CoreAttention is causal: it takes no mask"
        assert attention_bias is None, "CoreAttention takes no bias"
        packed = packed_seq_params
        assert packed is None or isinstance(packed, PackedRows)
        operator = self._operator(query, value)
        if operator is not None and allowed is None:
            q, k, v = (x.transpose(0, 1) for x in (query, key, value))
            out_TBHE = operator(
                q,
                k,
                v,
                causal=True,
                scale=self.softmax_scale,
                window=self._window(q.shape[1]),
                sinks=self.softmax_offset,
                cu_seqlens=None if packed is None else packed.bounds,
            ).transpose(0, 1)
        elif allowed is not None or self._is_ordinary(packed):
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out_TBHE = self._fused(q, k, v, allowed).permute(2, 0, 1, 3)
        elif self.config.context_parallel_size > 1 and self.config.cp_comm_type == "all_gather":
            out_TBHE = self._gathered(query, key, value, packed)
        else:
            out_TBHE = self._exchanged(query, key, value, packed)
        return out_TBHE.flatten(2)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """The sinks lie cut over the tensor-parallel ranks."""
        state = self.state_dict(prefix="", keep_vars=True)
        axes = {"softmax_offset": 0}
        return make_sharded_tensors_for_checkpoint(state, prefix, axes, sharded_offsets)

    def _fused(
        self,
        q_BHTD: torch.Tensor,
        k_BGTD: torch.Tensor,
        v_BGTD: torch.Tensor,
        allowed_BTT: torch.Tensor | None,
    ) -> torch.Tensor:
        mask = self._mask(q_BHTD) if allowed_BTT is None else allowed_BTT[:, None]
        dropout = self.config.attention_dropout if self.training else 0.0
        # Under sequence parallel whole layers draw apart already.
        with own_draws(is_on=dropout > 0 and not self.config.sequence_parallel):
            return F.scaled_dot_product_attention(
                q_BHTD,
                k_BGTD,
                v_BGTD,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=self.softmax_scale,
                enable_gqa=q_BHTD.shape[1] != k_BGTD.shape[1],
            )

    def _operator(self, query: torch.Tensor, value: torch.Tensor) -> SoftmaxAttention | None:
        """The run's fused operator, where it can say all of this attention."""
        kernels = kernels_of(self.config)
        is_plain = self.softcap is None and self.alibi_heads is None
        is_dropped = self.training and self.config.attention_dropout > 0
        # Latent attention's values are shorter than its keys.
        is_even = query.shape[-1] == value.shape[-1]
        fits = is_plain and is_even and not is_dropped and self.config.context_parallel_size == 1
        return kernels.attention if kernels is not None and fits else None

    def _is_ordinary(self, packed: PackedRows | None) -> bool:
        """Whether torch's own attention can say all of it."""
        is_whole = self.config.context_parallel_size == 1 and packed is None
        return is_whole and self.softcap is None and self.softmax_offset is None

    def _exchanged(
        self,
        q_TBHD: torch.Tensor,
        k_TBGD: torch.Tensor,
        v_TBGE: torch.Tensor,
        packed: PackedRows | None,
    ) -> torch.Tensor:
        """Heads for tokens in a Ulysses group, keys and values round a ring; either may be 1."""
        place, tokens = context_rank(self.config), q_TBHD.shape[0]
        group = context_group()
        if place.ulysses > 1:
            q_TBHD, k_TBGD, v_TBGE = heads_for_tokens(
                q_TBHD, k_TBGD, v_TBGE, place=place, group=group
            )
        window = self._window(tokens * place.size)
        steps = ring_plans(
            tokens * place.size,
            place,
            window=window,
            tile=self._tile(window),
            starts=None if packed is None else packed.starts,
        )
        sinks, slopes = (
            None if x is None else x.chunk(place.ulysses)[place.ulysses_rank]
            for x in (self.softmax_offset, self._slopes(q_TBHD.device))
        )
        out_BHTE = ring_attention(
            *(x.permute(1, 2, 0, 3) for x in (q_TBHD, k_TBGD, v_TBGE)),
            sinks=sinks,
            scoring=self._scoring(q_TBHD.shape[-1], slopes),
            steps=steps,
            ring=ring_of(place, group),
        )
        out_TBHE = out_BHTE.permute(2, 0, 1, 3)
        if place.ulysses > 1:
            out_TBHE = tokens_for_heads(out_TBHE, place=place, group=group)
        return out_TBHE

    def _gathered(
        self,
        q_TBHD: torch.Tensor,
        k_TBGD: torch.Tensor,
        v_TBGE: torch.Tensor,
        packed: PackedRows | None,
    ) -> torch.Tensor:
        """This rank's queries over the keys and values of all ranks."""
        place, tokens = context_rank(self.config), q_TBHD.shape[0]
        group = context_group()
        k_SBGD, v_SBGE = gather(k_TBGD, v_TBGE, place=place, group=group)
        window = self._window(tokens * place.size)
        pairs = plan(
            held(tokens * place.size, ring_rank=place.rank, ring_size=place.size),
            held(tokens * place.size, ring_rank=0, ring_size=1),
            window=window,
            tile=self._tile(window),
            starts=None if packed is None else packed.starts,
        )
        out_BHTE = ring_attention(
            *(x.permute(1, 2, 0, 3) for x in (q_TBHD, k_SBGD, v_SBGE)),
            sinks=self.softmax_offset,
            scoring=self._scoring(q_TBHD.shape[-1], self._slopes(q_TBHD.device)),
            steps=[pairs],
            ring=None,
        )
        return out_BHTE.permute(2, 0, 1, 3)

    def _scoring(self, head_dim: int, slopes: torch.Tensor | None) -> Scoring:
        return Scoring(
            scale=self.softmax_scale or head_dim**-0.5,
            window=self.window,
            softcap=self.softcap,
            slopes=slopes,
        )

    def _window(self, tokens: int) -> int | None:
        """The window, if a sequence of `tokens` is longer."""
        return self.window if self.window is not None and self.window < tokens else None

    def _tile(self, window: int | None) -> int | None:
        """Tokens whose scores are computed at once, at most; None = as many as there are."""
        if window is not None:
            return max(min(window, _TILE), _SMALLEST_WINDOW_TILE)
        is_plain = self.softcap is None and self.alibi_heads is None
        return None if is_plain else _TILE

    def _mask(self, q_BHTD: torch.Tensor) -> torch.Tensor | None:
        """[T, T] true where a query may look, or [H, T, T] to add; None for plain causal."""
        tokens, device = q_BHTD.shape[2], q_BHTD.device
        distance = _distance(tokens, device)
        allowed = distance >= 0
        window = self._window(tokens)
        if window is not None:
            allowed &= distance < window
        if self.alibi_heads is not None:
            slopes = self._slopes(device)
            assert slopes is not None
            bias = -slopes[:, None, None] * distance
            return bias.masked_fill(~allowed, -torch.inf).type_as(q_BHTD)
        return allowed if window is not None else None

    def _slopes(self, device: torch.device) -> torch.Tensor | None:
        """This rank's heads' slopes [H]."""
        if self.alibi_heads is None:
            return None
        slopes = torch.tensor(alibi_slopes(self.alibi_heads), device=device)
        ranks = self.config.tensor_model_parallel_size
        return slopes.chunk(ranks)[parallel_state.get_tensor_model_parallel_rank()]


def alibi_slopes(heads: int) -> list[float]:
    """One factor of distance a head (https://arxiv.org/abs/2108.12409).

    A geometric series from 2^(-8/n) for n heads, n a power of two; further heads take every second
    value of the series for 2n.
    """
    closest = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / closest) for i in range(closest)]
    finer = [2.0 ** (-4 * (i + 1) / closest) for i in range(0, 2 * closest, 2)]
    return slopes + finer[: heads - closest]


def _sink_parameter(config: TransformerConfig) -> torch.nn.Parameter:
    heads = config.num_attention_heads // config.tensor_model_parallel_size
    device = torch.cuda.current_device()
    parameter = torch.nn.Parameter(torch.zeros(heads, dtype=config.params_dtype, device=device))
    parameter.tensor_model_parallel = True  # pyright: ignore[reportAttributeAccessIssue]
    parameter.partition_dim = 0  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


def _distance(tokens: int, device: torch.device) -> torch.Tensor:
    """[T, T]: how far behind the query a key lies."""
    positions = torch.arange(tokens, device=device)
    return positions[:, None] - positions[None, :]
