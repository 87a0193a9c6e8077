"""The specification of attention."""

import torch
from torch import Tensor

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
) -> Tensor:
    """`softmax(cap(q · k * scale)) · v`, all in float32, rounded once at the end.

    q [B, T, H, D], k [B, S, G, D], v [B, S, G, E] → [B, T, H, E] in q's dtype. Query head h
    reads key head h // (H / G). scale: None is D^-0.5. softcap c: scores become
    `c * tanh(score / c)` before the mask (Gemma 2).
    causal: the last query stands at the last key, so query t sees key s when
    `s <= t + S - T`; S ≥ T. window w (causal only): also `s > t + S - T - w`, w keys at most.
    """
    heads, query_length, key_length = q.shape[2], q.shape[1], k.shape[1]
    repeats = heads // k.shape[2]
    keys = wide(k).repeat_interleave(repeats, dim=2)
    values = wide(v).repeat_interleave(repeats, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", wide(q), keys)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        hidden = ~visible(query_length, key_length, window=window, device=q.device)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("bhts,bshe->bthe", scores.softmax(dim=-1), values).to(q.dtype)


def visible(
    query_length: int, key_length: int, *, window: int | None, device: torch.device
) -> Tensor:
    """The causal mask [T, S], true where a query sees a key."""
    query = torch.arange(query_length, device=device)[:, None] + (key_length - query_length)
    key = torch.arange(key_length, device=device)[None, :]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)
