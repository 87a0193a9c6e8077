"""Multi-head latent attention, and the indexer that chooses which keys each query sees."""

import torch
import torch.nn.functional as F

from arch_decoder.attention import linear, visible
from arch_decoder.norms import rms
from arch_decoder.rope import rotate

AT = "self_attention."
INDEXER = AT + "core_attention.indexer."
INDEXER_NORM_EPS = 1e-6


def mla(layer, x):
    """Causal latent attention over x [B, T, H]."""
    facts = layer.document["mla"]
    batch, length, _ = x.shape
    q_latent, q = queries(layer, x, facts)
    k, v = keys_and_values(layer, x, facts)
    width = facts["qk_nope_head_dim"] + facts["qk_rope_head_dim"]
    scale = width**-0.5 if facts["scale"] is None else facts["scale"]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    seen = visible(length, layer.run["window"])[None].expand(batch, -1, -1)
    if facts["indexer"] is not None:
        if layer.index not in facts["indexer"]["borrowing_layers"]:
            layer.shared["selected"] = _selected(layer, x, q_latent, facts, seen)
        seen = seen & layer.shared["selected"]
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1)
    out = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, -1)
    return linear(layer, out, AT + "linear_proj")


def queries(layer, x, facts):
    """The queries' latent (x itself without one) and queries [B, T, heads, D]."""
    if facts["q_lora_rank"] is None:
        latent, q = x, linear(layer, x, AT + "linear_q_proj")
    else:
        down = linear(layer, x, AT + "linear_q_down_proj")
        latent = rms(down, layer.weight(AT + "q_layernorm.weight"), facts["norm_eps"])
        q = linear(layer, latent, AT + "linear_q_up_proj")
    q = q.unflatten(-1, (facts["heads"], -1)) * facts["q_scale"]
    nope, rope = q.split([facts["qk_nope_head_dim"], facts["qk_rope_head_dim"]], dim=-1)
    return latent, torch.cat([nope, _placed(layer, rope)], dim=-1)


def keys_and_values(layer, x, facts):
    """Both [B, T, heads, D]; all heads share the rotary part of the keys."""
    down = linear(layer, x, AT + "linear_kv_down_proj")
    latent, rope = down.split([facts["kv_lora_rank"], facts["qk_rope_head_dim"]], dim=-1)
    latent = rms(latent, layer.weight(AT + "kv_layernorm.weight"), facts["norm_eps"])
    up = linear(layer, latent * facts["kv_scale"], AT + "linear_kv_up_proj")
    up = up.unflatten(-1, (facts["heads"], -1))
    nope, v = up.split([facts["qk_nope_head_dim"], facts["v_head_dim"]], dim=-1)
    rope = _placed(layer, rope[:, :, None]).expand(-1, -1, facts["heads"], -1)
    return torch.cat([nope, rope], dim=-1), v


def _placed(layer, x):
    if layer.document["position"]["kind"] != "rope" or not layer.run["rope"]:
        return x
    return rotate(layer.document, x, width=x.shape[-1])


def _selected(layer, x, q_latent, facts, seen):
    """Which keys [B, T, T] are among the indexer's best `top_k` of those a query may see."""
    best = index_scores(layer, x, q_latent).masked_fill(~seen, float("-inf"))
    best = best.topk(min(facts["indexer"]["top_k"], x.shape[1]), dim=-1).indices
    return torch.zeros_like(seen).scatter(-1, best, True)


def index_scores(layer, x, q_latent):
    """The indexer's scores [B, T, T] of every key for every query.

    score = Σ over heads of weight / √heads · relu(q·k / √D) (DeepSeek-V3.2's lightning indexer).
    """
    facts = layer.document["mla"]
    indexer, rope = facts["indexer"], facts["qk_rope_head_dim"]

    def turned(part):
        return rotate(layer.document, part, width=rope, interleaved=indexer["rope_interleaved"])

    q = linear(layer, q_latent, INDEXER + "linear_wq_b").unflatten(-1, (indexer["heads"], -1))
    k = linear(layer, x, INDEXER + "linear_wk")
    scale, shift = (layer.weight(INDEXER + f"k_norm.{kind}") for kind in ("weight", "bias"))
    k = F.layer_norm(k, (indexer["head_dim"],), scale, shift, INDEXER_NORM_EPS)
    dots = torch.einsum("bqhd,bkd->bqhk", turned(q), turned(k[:, :, None])[:, :, 0])
    weights = linear(layer, x, INDEXER + "linear_weights_proj") * indexer["heads"] ** -0.5
    return (weights[..., None] * F.relu(dots * indexer["head_dim"] ** -0.5)).sum(dim=2)
