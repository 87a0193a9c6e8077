"""attention by PyTorch's scaled_dot_product_attention."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.attention.documents import each_document
from llm_kernels_npu.ops.attention.reference import visible
from llm_kernels_npu.ops.checks import wide

# Fused kernels want a head's features in multiples of 8.
_SINK_FEATURES = 8


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
    """See `reference.attention`; the limits refuse softcap."""
    assert softcap is None
    dense = functools.partial(
        _dense, causal=causal, scale=scale, window=window, sinks=sinks, mask=mask
    )
    if cu_seqlens is None:
        return dense(q, k, v)
    return each_document(dense, q, k, v, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k)


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None,
    window: int | None,
    sinks: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    query_length, key_length, features = q.shape[1], k.shape[1], v.shape[3]
    seen = None
    # PyTorch's own causal mask starts at the first key, ours ends at the last; and it goes with
    # no other mask. A lone query sees every key.
    own_causal = query_length == key_length and mask is None and sinks is None
    if (window is not None and window < key_length) or (
        causal and query_length > 1 and not own_causal
    ):
        seen = visible(query_length, key_length, window=window, device=q.device)
    if mask is not None and mask.dtype is torch.bool and q.device.type == "npu":
        # torch_npu hands a boolean mask to its fused operator without asking for rows that see
        # no key to be zero; a floating one it computes in steps, with such rows zero.
        mask = q.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))
    joint = _joint(mask, seen)
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    if factor <= 0:
        # PyTorch's kernels scale what is hidden, -inf, too.
        q, factor = q * factor, 1.0
    if sinks is not None:
        q, k, v = _with_sink_key(q, k, v, sinks, scale=factor)
        joint = None if joint is None else functional.pad(joint, (1, 0), value=_open(joint))
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=joint,
        is_causal=causal and joint is None and sinks is None and query_length > 1,
        scale=factor,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)[..., :features]


def _joint(mask: Tensor | None, seen: Tensor | None) -> Tensor | None:
    """One mask for both: what each of them hides stays hidden."""
    if mask is None or seen is None:
        return seen if mask is None else mask
    return mask & seen if mask.dtype is torch.bool else mask.masked_fill(~seen, float("-inf"))


def _open(mask: Tensor) -> float:
    """What lets a query see a key in a mask of that dtype."""
    return 1.0 if mask.dtype is torch.bool else 0.0


def _with_sink_key(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One more key in front with a value of zero, which every query scores with its head's sink.

    A further feature holds `sink / scale` in each query, 1 in that key and 0 in all others: a
    finite number, as an infinite one times 0 is NaN.
    """
    batch, queries, heads, dim = q.shape
    most = torch.finfo(q.dtype).max
    scaled = (wide(sinks) / scale).clamp(-most, most).to(q.dtype)
    lane = functional.pad(scaled[:, None], (0, _SINK_FEATURES - 1))
    wider_q = torch.cat((q, lane.expand(batch, queries, heads, _SINK_FEATURES)), dim=-1)
    in_front = (0, 0, 1, 0)
    is_sink = torch.zeros(k.shape[1] + 1, 1, dim + _SINK_FEATURES, dtype=k.dtype, device=k.device)
    is_sink[0, 0, dim] = 1
    wider_k = functional.pad(k, (0, _SINK_FEATURES, *in_front)) + is_sink
    wider_v = functional.pad(v, (0, max(0, dim + _SINK_FEATURES - v.shape[3]), *in_front))
    return wider_q, wider_k, wider_v
