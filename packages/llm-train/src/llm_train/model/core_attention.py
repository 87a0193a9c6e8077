"""Causal attention itself, over heads that are already projected, normed and rotated."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint


class CoreAttention(torch.nn.Module):
    """Causal attention over [T, B, H, D].

    `window` counts the tokens a query sees, itself included; None = all before it. `softcap` bounds
    scores by softcap · tanh(score / softcap). `sinks`: a learned score a head that takes part in
    the softmax and gives nothing. `alibi_heads`: heads of the whole model, biased by distance.
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

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: object = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: object = None,
    ) -> torch.Tensor:
        # T tokens, B batch, H query heads (G key and value heads), D head dim
        assert attention_mask is None, "CoreAttention is causal: it takes no mask"
        assert attention_bias is None, "CoreAttention takes no bias"
        assert packed_seq_params is None, "CoreAttention takes no packed sequences"
        q_BHTD, k_BGTD, v_BGTD = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if self.softcap is None and self.softmax_offset is None:
            out_BHTD = self._fused(q_BHTD, k_BGTD, v_BGTD)
        else:
            out_BHTD = self._explicit(q_BHTD, k_BGTD, v_BGTD)
        return out_BHTD.permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], -1)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """The sinks lie cut over the tensor-parallel ranks."""
        state = self.state_dict(prefix="", keep_vars=True)
        axes = {"softmax_offset": 0}
        return make_sharded_tensors_for_checkpoint(state, prefix, axes, sharded_offsets)

    def _fused(
        self, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor
    ) -> torch.Tensor:
        mask = self._mask(q_BHTD)
        return F.scaled_dot_product_attention(
            q_BHTD,
            k_BGTD,
            v_BGTD,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=q_BHTD.shape[1] != k_BGTD.shape[1],
        )

    def _explicit(
        self, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor
    ) -> torch.Tensor:
        """Scores in fp32, whole: what torch's fused attention cannot say."""
        heads, tokens = q_BHTD.shape[1], q_BHTD.shape[2]
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k_BGTD, v_BGTD))
        scale = self.softmax_scale or q_BHTD.shape[-1] ** -0.5
        scores = (q_BHTD @ k.transpose(-1, -2)).float() * scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        mask = self._mask(q_BHTD)
        if mask is None:
            mask = _distance(tokens, q_BHTD.device) >= 0
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
        if self.softmax_offset is not None:
            sink = self.softmax_offset.float()[None, :, None, None]
            scores = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], dim=-1)
        weights = scores.softmax(-1)[..., :tokens].type_as(v)
        return weights @ v

    def _mask(self, q_BHTD: torch.Tensor) -> torch.Tensor | None:
        """[T, T] true where a query may look, or [H, T, T] to add; None for plain causal."""
        tokens, device = q_BHTD.shape[2], q_BHTD.device
        distance = _distance(tokens, device)
        allowed = distance >= 0
        window = tokens if self.window is None else self.window
        if window < tokens:
            allowed &= distance < window
        if self.alibi_heads is not None:
            bias = -self._slopes(device)[:, None, None] * distance
            return bias.masked_fill(~allowed, -torch.inf).type_as(q_BHTD)
        return allowed if window < tokens else None

    def _slopes(self, device: torch.device) -> torch.Tensor:
        """This rank's heads' slopes [H]."""
        assert self.alibi_heads is not None
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
