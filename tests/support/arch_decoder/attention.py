"""Softmax attention with grouped keys and values."""

import math

import torch
import torch.nn.functional as F

from arch_decoder.norms import norm
from arch_decoder.rope import rotate


def attention(layer, x):
    """Causal attention over x [B, T, H]."""
    facts = layer.document["attention"]
    batch, length, _ = x.shape
    q, gate, kv = _projections(layer, x, facts)
    q = _placed(layer, q, "q")
    if kv is not None:
        layer.shared["kv"] = kv
    k, v = layer.shared["kv"]
    k = _placed(layer, k, "k")
    scale = facts["head_dim"] ** -0.5 if facts["scale"] is None else facts["scale"]
    out = weighted_values(layer, q, k, v, scale=scale).reshape(batch, length, -1)
    if gate is not None:
        out = out * torch.sigmoid(gate.reshape(batch, length, -1))
    return linear(layer, out, "self_attention.linear_proj")


def weighted_values(layer, q, k, v, *, scale):
    """Values mixed by softmax(scale · q·k): all [B, T, heads, D], k and v of fewer heads."""
    facts = layer.document["attention"] or {}
    times = q.shape[2] // k.shape[2]
    k, v = (part.repeat_interleave(times, dim=2) for part in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if (cap := facts.get("softcap")) is not None:
        scores = torch.tanh(scores / cap) * cap
    length = q.shape[1]
    if layer.document["position"]["kind"] == "alibi" and layer.run["rope"]:
        scores = scores + alibi_slopes(q.shape[2])[:, None, None] * torch.arange(length).float()
    scores = scores.masked_fill(~visible(length, layer.run["window"]), float("-inf"))
    if facts.get("sinks"):
        sinks = layer.weight("self_attention.core_attention.softmax_offset")
        column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def visible(length, window):
    """Which keys (columns) a query (row) sees: none later, and `window` with its own."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance < (length if window is None else window))


def alibi_slopes(heads):
    """2^(-8i/n) for the largest power of two n ≤ heads; the rest from the odd ones of 2n."""
    n = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-8 * (2 * i + 1) / (2 * n)) for i in range(heads - n)]
    return torch.tensor(slopes)


def linear(layer, x, name):
    """x through a linear layer, with its bias when there is one."""
    bias = layer.weight(f"{name}.bias") if layer.has(f"{name}.bias") else None
    return F.linear(x, layer.weight(f"{name}.weight"), bias)


def _projections(layer, x, facts):
    """q, gate (or None) [B, T, heads, D] and (k, v) [B, T, groups, D] (or None: borrowed)."""
    owns_kv = layer.has("self_attention.linear_qkv.weight")
    rows = linear(layer, x, f"self_attention.linear_{'qkv' if owns_kv else 'q'}")
    groups, dim = facts["query_groups"], facts["head_dim"]
    by_group = rows.reshape(*x.shape[:2], groups, -1, dim)
    queries = facts["heads"] // groups
    sizes = [queries] * (2 if facts["output_gate"] else 1) + [1, 1] * owns_kv
    parts = [part.flatten(2, 3) for part in by_group.split(sizes, dim=3)]
    gate = parts[1] if facts["output_gate"] else None
    return parts[0], gate, tuple(parts[-2:]) if owns_kv else None


def _placed(layer, x, part):
    """Queries or keys normed and rotated, in the model's order."""
    document, kind = layer.document, layer.document["attention"]["qk_norm"]
    if kind in ("head", "full"):
        x = _normed(layer, x, part, over_heads=kind == "full")
    if document["position"]["kind"] == "rope" and layer.run["rope"]:
        x = rotate(document, x, width=int(x.shape[-1] * document["position"]["fraction"]))
    if kind == "head_after_rope":
        x = _normed(layer, x, part, over_heads=False)
    return x


def _normed(layer, x, part, *, over_heads):
    flat = x.flatten(2) if over_heads else x
    name = f"self_attention.{part}_layernorm"
    return norm(layer.document, layer.weight, name, flat).reshape(x.shape)
