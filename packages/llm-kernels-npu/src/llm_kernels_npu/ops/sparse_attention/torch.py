"""sparse_attention by PyTorch's scaled_dot_product_attention and a mask."""

import torch
from torch import Tensor
from torch.nn import functional


def sparse_attention(
    q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
) -> Tensor:
    """See `reference.sparse_attention`.

    Scores of all keys are computed, which takes T · S of memory but gathers nothing.
    """
    length = kv.shape[1]
    mask = torch.zeros(*keys.shape[:2], length + 1, dtype=torch.bool, device=q.device)
    # Where there is no key, a column behind the last is marked and cut off.
    mask.scatter_(2, torch.where(keys < 0, length, keys).long(), value=True)
    mask = mask[:, None, :, :length]
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        kv[:, None],
        kv[:, None, :, :value_dim],
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    )
    # Whoever sees nothing attends evenly to everything in some of PyTorch's kernels.
    return out.masked_fill(~mask.any(-1, keepdim=True), 0.0).transpose(1, 2)
