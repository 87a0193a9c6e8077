"""sparse_attention by `torch_npu.npu_sparse_flash_attention`."""

import torch
from torch import Tensor

LATENT_DIM = 512
"""Features that are key and value; the rest of a key turns with its position."""
_CHOSEN_KEYS_ALONE = 0
_LATENT_IS_KEY_AND_VALUE = 2


def sparse_attention(
    q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
) -> Tensor:
    """See `reference.sparse_attention`; the limits leave value_dim no choice."""
    assert value_dim == LATENT_DIM
    latent, rope = (
        part.contiguous()[:, :, None] for part in kv.tensor_split((LATENT_DIM,), dim=-1)
    )
    q_latent, q_rope = (part.contiguous() for part in q.tensor_split((LATENT_DIM,), dim=-1))
    # The statistics are for the backward alone.
    has_backward = torch.is_grad_enabled() and (q.requires_grad or kv.requires_grad)
    return torch.ops.npu.npu_sparse_flash_attention.default(
        q_latent,
        latent,
        latent,
        keys[:, :, None].int().contiguous(),
        q.shape[-1] ** -0.5 if scale is None else scale,
        query_rope=q_rope,
        key_rope=rope,
        sparse_block_size=1,
        sparse_mode=_CHOSEN_KEYS_ALONE,
        attention_mode=_LATENT_IS_KEY_AND_VALUE,
        return_softmax_lse=has_backward,
    )[0]
