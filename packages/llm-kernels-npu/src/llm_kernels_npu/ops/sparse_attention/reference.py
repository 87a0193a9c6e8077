"""The specification of sparse_attention."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def sparse_attention(
    q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
) -> Tensor:
    """`softmax(q · kv[keys] * scale) · kv[keys, :value_dim]`, in float32, rounded at the end.

    q [B, T, H, D], kv [B, S, D]: one key a token for all heads, whose first E = value_dim features
    are its value (latent attention with its up-projections absorbed into q and the output), keys
    [B, T, K] int32: different positions, or below 0 for none → [B, T, H, E] in q's dtype. Nothing
    but `keys` hides a position. A query without any key gives 0. scale: None is D^-0.5.
    """
    picked = torch.stack(
        [one[chosen.clamp(min=0)] for one, chosen in zip(wide(kv), keys, strict=True)]
    )
    scores = torch.einsum("bthd,btkd->bthk", wide(q), picked)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    is_none = (keys < 0)[:, :, None]
    # Not -inf: a query without keys would be 0 / 0, and its gradient NaN.
    scores = scores.masked_fill(is_none, torch.finfo(scores.dtype).min)
    shares = scores.softmax(dim=-1).masked_fill(is_none, 0.0)
    return torch.einsum("bthk,btke->bthe", shares, picked[..., :value_dim]).to(q.dtype)
