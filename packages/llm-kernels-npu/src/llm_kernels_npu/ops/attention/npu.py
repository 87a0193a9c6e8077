"""attention by `torch_npu.npu_fusion_attention`."""

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_kernels_npu.ops.attention.reference import visible

_FULL_MASK = 1
_CAUSAL_ENDING_AT_LAST_KEY = 3
_BAND_ENDING_AT_LAST_KEY = 4
_MASK_SIZE = 2048
# Rows that see no key give zeros only when asked for.
_ROWS_WITHOUT_KEYS = 2


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> Tensor:
    """See `reference.attention`; the limits refuse softcap and floating masks.

    Documents go in the layout TND, whose lengths are given by each document's end.
    """
    assert softcap is None
    options = _masking(q, k, causal=causal, window=window, mask=mask)
    options["scale"] = q.shape[-1] ** -0.5 if scale is None else scale
    if sinks is not None:
        options["sink"] = sinks.float()
    fused = torch.ops.npu.npu_fusion_attention.default
    heads = q.shape[2]
    if cu_seqlens is None:
        return fused(q, k, v, heads, "BSND", **options)[0]
    options["actual_seq_qlen"], options["actual_seq_kvlen"] = _ends(cu_seqlens, cu_seqlens_k)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    return fused(*flat, heads, "TND", **options)[0].view(q.shape)


def _masking(
    q: Tensor, k: Tensor, *, causal: bool, window: int | None, mask: Tensor | None
) -> dict[str, object]:
    query_length, key_length = q.shape[1], k.shape[1]
    if mask is not None:
        seen = mask
        if causal:
            seen = mask & visible(query_length, key_length, window=window, device=q.device)
        if seen.dim() == 4 and seen.shape[0] < q.shape[0] and seen.shape[1] > 1:
            seen = seen.expand(q.shape[0], -1, -1, -1)
        # The fused operator's masks are true where a key is hidden.
        return {
            "atten_mask": ~seen,
            "sparse_mode": _FULL_MASK,
            "inner_precise": _ROWS_WITHOUT_KEYS,
        }
    if not causal:
        return {}
    triangle: dict[str, object] = {"atten_mask": _compressed_mask(q.device)}
    if window is None or window >= q.shape[0] * key_length:
        return {**triangle, "sparse_mode": _CAUSAL_ENDING_AT_LAST_KEY}
    # The query's own position is not counted among the tokens before it.
    band = {"pre_tockens": window - 1, "next_tockens": 0}
    return {**triangle, **band, "sparse_mode": _BAND_ENDING_AT_LAST_KEY}


def _ends(
    cu_seqlens: Sequence[int], cu_seqlens_k: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Where each document's queries and keys end; documents that have neither are left out."""
    bounds = zip(cu_seqlens, cu_seqlens_k or cu_seqlens, strict=True)
    ends = [after for before, after in itertools.pairwise(bounds) if after != before]
    return [queries for queries, _ in ends], [keys for _, keys in ends]


@functools.lru_cache(maxsize=16)
def _compressed_mask(device: torch.device) -> Tensor:
    """The one mask every causal mode takes, whatever the lengths: true above the diagonal."""
    return torch.ones(_MASK_SIZE, _MASK_SIZE, dtype=torch.bool, device=device).triu_(1)
