"""attention by `torch_npu.npu_fusion_attention`."""

import functools

import torch
from torch import Tensor

_CAUSAL_ENDING_AT_LAST_KEY = 3
_BAND_ENDING_AT_LAST_KEY = 4
_UNLIMITED = 2147483647
_MASK_SIZE = 2048


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
    fused = torch.ops.npu.npu_fusion_attention.default
    heads, scale = q.shape[2], q.shape[-1] ** -0.5 if scale is None else scale
    if not causal:
        return fused(q, k, v, heads, "BSND", scale=scale)[0]
    mask = _compressed_mask(q.device)
    if window is None or window >= k.shape[1]:
        mode = _CAUSAL_ENDING_AT_LAST_KEY
        return fused(q, k, v, heads, "BSND", atten_mask=mask, scale=scale, sparse_mode=mode)[0]
    return fused(
        q,
        k,
        v,
        heads,
        "BSND",
        atten_mask=mask,
        scale=scale,
        # The query's own position is not counted among the tokens before it.
        pre_tockens=window - 1,
        next_tockens=0,
        sparse_mode=_BAND_ENDING_AT_LAST_KEY,
    )[0]


@functools.lru_cache(maxsize=16)
def _compressed_mask(device: torch.device) -> Tensor:
    """The one mask every causal mode takes, whatever the lengths: true above the diagonal."""
    return torch.ones(_MASK_SIZE, _MASK_SIZE, dtype=torch.bool, device=device).triu_(1)
