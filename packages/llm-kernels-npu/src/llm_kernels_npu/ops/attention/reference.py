"""The specification of attention."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_kernels_npu.ops.attention.documents import each_document
from llm_kernels_npu.ops.checks import wide


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
    """`softmax(cap(q · k * scale)) · v`, all in float32, rounded once at the end.

    q [B, T, H, D], k [B, S, G, D], v [B, S, G, E] → [B, T, H, E] in q's dtype. Query head h
    reads key head h // (H / G). scale: None is D^-0.5. softcap c: scores become
    `c * tanh(score / c)` before any mask (Gemma 2).
    causal: the last query stands at the last key, so query t sees key s when
    `s <= t + S - T`; S ≥ T. window w (causal only): also `s > t + S - T - w`, w keys at most.
    mask [T, S] or [B or 1, H or 1, T, S], beside `causal`: boolean, true where a query sees a
    key; or floating, added to the scores (-inf hides a key). A query that sees no key gives zeros
    and passes no gradient.
    sinks [H]: logits that join a head's softmax and attend to nothing (gpt-oss).
    cu_seqlens [N + 1]: the rows are packed. The B * T queries, row after row, are N documents;
    document n is queries `cu_seqlens[n]` up to `cu_seqlens[n + 1]`, sees its own keys alone, and
    its T and S are those above. cu_seqlens_k is the same for the keys, cu_seqlens if None. Both
    are integers of the host, read once a batch instead of once a layer.
    """
    dense = functools.partial(
        _dense,
        causal=causal,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        mask=mask,
    )
    if cu_seqlens is None:
        return dense(q, k, v)
    return each_document(dense, q, k, v, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k)


def visible(
    query_length: int, key_length: int, *, window: int | None, device: torch.device
) -> Tensor:
    """The causal mask [T, S], true where a query sees a key."""
    query = torch.arange(query_length, device=device)[:, None] + (key_length - query_length)
    key = torch.arange(key_length, device=device)[None, :]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    heads, query_length, key_length = q.shape[2], q.shape[1], k.shape[1]
    repeats = heads // k.shape[2]
    keys = wide(k).repeat_interleave(repeats, dim=2)
    values = wide(v).repeat_interleave(repeats, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", wide(q), keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        hidden = ~visible(query_length, key_length, window=window, device=q.device)
        scores = scores.masked_fill(hidden, float("-inf"))
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + wide(mask)
    weights = _softmax(scores, sinks)
    return torch.einsum("bhts,bshe->bthe", weights, values).to(q.dtype)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over keys [B, H, T, S] with the sinks in its sum; zeros where all is -inf."""
    top = scores.detach().amax(dim=-1, keepdim=True)
    sink = None if sinks is None else wide(sinks)[:, None, None]
    if sink is not None:
        top = torch.maximum(top, sink.detach())
    # -inf less -inf is NaN: a row that sees nothing is measured from zero.
    top = top.masked_fill(top == float("-inf"), 0.0)
    portions = (scores - top).exp()
    total = portions.sum(dim=-1, keepdim=True)
    if sink is not None:
        total = total + (sink - top).exp()
    return portions / total.masked_fill(total == 0, 1.0)
