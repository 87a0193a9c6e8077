"""Our own modules for the layer spec: norms that allow sequence parallel, and core attention."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig


def _parameter(config: TransformerConfig, fill: float, size: int) -> torch.nn.Parameter:
    value = torch.full((size,), fill, dtype=config.params_dtype, device=torch.cuda.current_device())
    parameter = torch.nn.Parameter(value)
    # Each rank sees a slice of the sequence: the gradients are summed over tensor parallel.
    parameter.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last axis; weight is stored minus one when zero-centered."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        self.weight = _parameter(config, 0.0 if self.zero_centered else 1.0, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + 1 if self.zero_centered else self.weight
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


class LayerNorm(torch.nn.Module):
    """(x − mean) / std * weight + bias over the last axis."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        self.weight = _parameter(config, 0.0 if self.zero_centered else 1.0, hidden_size)
        self.bias = _parameter(config, 0.0, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + 1 if self.zero_centered else self.weight
        return F.layer_norm(x, (x.shape[-1],), weight, self.bias, self.eps)


class Norm:
    """The norm that `config.normalization` names: not every megatron-core builder says which."""

    def __new__(
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_ignored: Any
    ) -> torch.nn.Module:
        kind = RMSNorm if config.normalization == "RMSNorm" else LayerNorm
        return kind(config, hidden_size, eps)


class QkvLinear(ColumnParallelLinear):
    """The fused query, key, value projection, with a bias of its own choice."""

    def __init__(self, *args: Any, has_bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": has_bias})


class OutLinear(RowParallelLinear):
    """The attention output projection, with a bias of its own choice."""

    def __init__(self, *args: Any, has_bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": has_bias})


class CoreAttention(torch.nn.Module):
    """Causal attention over [T, B, H, D] through torch's scaled_dot_product_attention.

    `window` counts the tokens a query sees, itself included; None = all before it.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        softmax_scale: float | None = None,
        window: int | None = None,
        **_ignored: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.window = window

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
        tokens = q_BHTD.shape[2]
        mask = self._window_mask(tokens, q_BHTD.device)
        out_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BGTD,
            v_BGTD,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=q_BHTD.shape[1] != k_BGTD.shape[1],
        )
        return out_BHTD.permute(2, 0, 1, 3).reshape(tokens, out_BHTD.shape[0], -1)

    def _window_mask(self, tokens: int, device: torch.device) -> torch.Tensor | None:
        """[T, T] true where a query may look; None when the window holds the whole sequence."""
        if self.window is None or self.window >= tokens:
            return None
        query = torch.arange(tokens, device=device)[:, None]
        distance = query - torch.arange(tokens, device=device)[None, :]
        return (distance >= 0) & (distance < self.window)
