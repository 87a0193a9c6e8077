"""attention by PyTorch's scaled_dot_product_attention."""

from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.attention.reference import visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See `reference.attention`; the limits refuse softcap."""
    assert softcap is None
    query_length, key_length = q.shape[1], k.shape[1]
    mask = None
    if window is not None and window < key_length:
        mask = visible(query_length, key_length, window=window, device=q.device)
    elif causal and 1 < query_length < key_length:
        # PyTorch's own causal mask starts at the first key, ours ends at the last.
        mask = visible(query_length, key_length, window=None, device=q.device)
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None and query_length > 1,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
