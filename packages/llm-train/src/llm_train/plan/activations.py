"""Bytes that forward keeps for backward, counted module by module from what autograd saves.

Valid for our modules (llm_train.model): attention keeps queries, keys, values, output and one
number a head, never the scores; norms as torch composes them (input and normalised input in fp32),
or as one kernel keeps them (the input and one number a token) where the device has one.
"""

from __future__ import annotations

from llm_train.arch import Arch, Mlp, Moe
from llm_train.config import RecomputeConfig, RecomputeKind, RecomputeMethod, RecomputeModule
from llm_train.handover import SHORTCUT
from llm_train.plan.layers import Layer, prediction_layer
from llm_train.plan.parameters import query_key_value_rows
from llm_train.plan.recurrent import delta_net_bytes, state_space_bytes
from llm_train.plan.shapes import FP32, Shapes


def layer_bytes(arch: Arch, layer: Layer, shapes: Shapes, recompute: RecomputeConfig) -> float:
    """What one layer keeps when it is not computed again as a whole."""
    parts = recompute.parts
    norms = _block_norm_bytes(arch, shapes, is_again=RecomputeModule.LAYERNORM in parts)
    mixer, kind, work = _mixer_bytes(arch, layer, shapes, parts), layer.run.feed_forward, 0.0
    if kind in ("moe", SHORTCUT) and RecomputeModule.MOE not in parts:
        work += _moe_bytes(arch, shapes, parts)
    if kind in ("dense", SHORTCUT) and RecomputeModule.MLP not in parts:
        work += _mlp_bytes(arch, shapes, parts)
    return layer.blocks * norms + mixer + work


def input_bytes(arch: Arch, shapes: Shapes) -> float:
    """The hidden states that enter a layer: all that a layer computed again keeps."""
    return shapes.tokens_outside * arch.hidden_size * shapes.width


def layers_bytes(
    arch: Arch, layers: list[Layer], shapes: Shapes, recompute: RecomputeConfig
) -> float:
    """What the layers of one chunk keep for one micro-batch."""
    kept = [layer_bytes(arch, layer, shapes, recompute) for layer in layers]
    if recompute.kind is not RecomputeKind.FULL:
        return sum(kept)
    one_input = input_bytes(arch, shapes)
    if recompute.method is RecomputeMethod.BLOCK:
        again = min(recompute.layers, len(layers))
        lent = _lent_bytes(arch, layers[:again], shapes)
        return again * one_input + lent + sum(kept[again:])
    lent = _lent_bytes(arch, layers, shapes)
    return -(-len(layers) // recompute.layers) * one_input + lent


def _lent_bytes(arch: Arch, layers: list[Layer], shapes: Shapes) -> float:
    """Keys and values that layers, computed again, are given by others."""
    if arch.attention is None:
        return 0.0
    width = 2 * arch.attention.query_groups * arch.attention.head_dim / shapes.tp * shapes.width
    return sum(layer.lends for layer in layers) * shapes.tokens * width


def again_bytes(
    arch: Arch, layers: list[Layer], shapes: Shapes, recompute: RecomputeConfig
) -> float:
    """What backward keeps for a moment while it computes one unit of layers again."""
    if recompute.kind is not RecomputeKind.FULL or not layers:
        return 0.0
    unit = recompute.layers if recompute.method is RecomputeMethod.UNIFORM else 1
    largest = max(layer_bytes(arch, layer, shapes, recompute) for layer in layers)
    return min(unit, len(layers)) * largest


def head_bytes(arch: Arch, shapes: Shapes, *, vocab_rows: int) -> float:
    """The final norm, and the logits that the loss keeps, in fp32."""
    norm = norm_bytes(arch.hidden_size * shapes.tokens_outside, shapes.tokens_outside, shapes)
    hidden = shapes.tokens_outside * arch.hidden_size * shapes.width
    return norm + hidden + logits_bytes(shapes, vocab_rows=vocab_rows)


def logits_bytes(shapes: Shapes, *, vocab_rows: int) -> float:
    """This rank's part of the softmax of one micro-batch, in fp32."""
    return shapes.tokens * vocab_rows / shapes.tp * FP32


def norm_bytes(elements: float, rows: float, shapes: Shapes) -> float:
    """One norm of `rows` vectors of `elements` numbers together."""
    if shapes.has_kernels:
        return elements * shapes.width + rows * FP32
    return elements * 2 * FP32 + rows * FP32


def prediction_bytes(arch: Arch, shapes: Shapes, recompute: RecomputeConfig) -> float:
    """What the prediction layers keep for one micro-batch, their logits apart."""
    if arch.mtp is None:
        return 0.0
    one_input = input_bytes(arch, shapes)
    if is_whole_layer_again(recompute):
        return arch.mtp.layers * 2 * one_input  # the embedding, and what it gives
    elements, rows = shapes.tokens_outside * arch.hidden_size, shapes.tokens_outside
    # Hidden states and embeddings are normed and joined, what the layer makes of them is normed.
    around = 3 * (norm_bytes(elements, rows, shapes) + one_input)
    layer = layer_bytes(arch, prediction_layer(arch), shapes, recompute)
    return arch.mtp.layers * (around + layer)


def is_whole_layer_again(recompute: RecomputeConfig) -> bool:
    """Every layer keeps its input alone."""
    return recompute.kind is RecomputeKind.FULL and recompute.method is RecomputeMethod.UNIFORM


def _block_norm_bytes(arch: Arch, shapes: Shapes, *, is_again: bool) -> float:
    """The norms around one block, and its input."""
    placement, rows = arch.norm.placement, shapes.tokens_outside
    elements = rows * arch.hidden_size
    # Without a norm before it a block keeps the hidden states themselves.
    before = elements * shapes.width
    if placement != "post" and not is_again:
        before += norm_bytes(elements, rows, shapes)
    after = norm_bytes(elements, rows, shapes) if placement != "pre" else 0.0
    return before + after


def _mixer_bytes(
    arch: Arch, layer: Layer, shapes: Shapes, parts: tuple[RecomputeModule, ...]
) -> float:
    is_again = RecomputeModule.CORE_ATTENTION in parts
    mixer = layer.run.mixer
    if mixer == "mla":
        return _latent_bytes(arch, shapes, parts) + _mask_bytes(arch, layer, shapes)
    if mixer == "gdn":
        assert arch.gdn is not None
        return delta_net_bytes(arch.gdn, shapes, is_again=is_again)
    if mixer == "mamba2":
        assert arch.mamba2 is not None
        return state_space_bytes(arch.mamba2, shapes, is_again=is_again)
    return 0.0 if mixer == "none" else _attention_bytes(arch, layer, shapes, parts)


def _attention_bytes(
    arch: Arch, layer: Layer, shapes: Shapes, parts: tuple[RecomputeModule, ...]
) -> float:
    tokens, width = shapes.tokens, shapes.width
    assert arch.attention is not None
    one = arch.attention
    heads, queries = one.heads / shapes.tp, one.heads * one.head_dim / shapes.tp
    keys = one.query_groups * one.head_dim / shapes.tp
    norms = 0.0
    if one.qk_norm != "none":
        # In fp32 the keys that are normed lie in the projection's output.
        rows = tokens * (heads + one.query_groups / shapes.tp)
        norms = norm_bytes(tokens * (queries + keys), rows, shapes)
        if width == FP32 and not shapes.has_kernels:
            norms -= tokens * keys * FP32
    gate = tokens * queries * width if one.output_gate else 0.0
    out = tokens * queries * width
    # A rotation makes new queries and keys; values stay in what the projection put out.
    projected = tokens * query_key_value_rows(one) / shapes.tp * width
    turned = tokens * (queries + keys) * width if layer.run.rope else 0.0
    if layer.lends or layer.borrows:
        # Values that layers share stay in a copy of what the first of them projected.
        projected = tokens * 2 * keys * width if layer.lends else 0.0
        turned = tokens * (queries + keys) * width
    inside = 0.0
    if RecomputeModule.CORE_ATTENTION not in parts:
        if shapes.exchange is not None:
            # What came from other ranks takes the place of a rank's own.
            turned = tokens * (queries + 2 * shapes.exchange * keys) * width
            projected *= one.qk_norm != "none" and width == FP32
        inside = tokens * heads * FP32
        if arch.position.kind == "alibi":
            inside += heads * shapes.seq_length**2 * width
        if one.softcap is not None or one.sinks or shapes.exchange is not None:
            inside += out  # our own kernel's, which is copied for the projection
    return projected + turned + norms + gate + out + inside


def _latent_bytes(arch: Arch, shapes: Shapes, parts: tuple[RecomputeModule, ...]) -> float:
    assert arch.mla is not None
    one, tokens, width = arch.mla, shapes.tokens, shapes.width
    outside, heads = shapes.tokens_outside, arch.mla.heads / shapes.tp
    head = one.qk_nope_head_dim + one.qk_rope_head_dim
    latent = (one.q_lora_rank or 0) + one.kv_lora_rank
    kept = norm_bytes(outside * latent, 2 * outside, shapes) + outside * 2 * latent * width
    exchange = None if RecomputeModule.CORE_ATTENTION in parts else shapes.exchange
    if RecomputeModule.MLA_UP_PROJ not in parts:
        # Queries, keys, and values inside the up-projection's output.
        own = 2 * head + one.qk_nope_head_dim + one.v_head_dim
        kept += tokens * heads * (own if exchange is None else 0) * width
    if exchange is not None:
        received = head + exchange * (head + one.v_head_dim)
        kept += tokens * heads * received * width
    if RecomputeModule.CORE_ATTENTION not in parts:
        is_fused = shapes.has_kernels or shapes.cp > 1 or head == one.v_head_dim
        kept += tokens * heads * (FP32 if is_fused else shapes.seq_length * width)
    return kept + tokens * heads * one.v_head_dim * width


def _mask_bytes(arch: Arch, layer: Layer, shapes: Shapes) -> float:
    """What an indexer chose: a byte for each query and key, if there is a choice."""
    assert arch.mla is not None
    indexer = arch.mla.indexer
    has_mask = indexer is not None and layer.chooses and shapes.seq_length > indexer.top_k
    return float(shapes.tokens * shapes.seq_length) if has_mask else 0.0


def _mlp_bytes(arch: Arch, shapes: Shapes, parts: tuple[RecomputeModule, ...]) -> float:
    assert arch.mlp is not None
    ffn = arch.mlp.ffn_hidden_size / shapes.tp
    again = (*parts, RecomputeModule.ACTIVATION) if shapes.has_fused_mlp else parts
    return shapes.tokens * ffn * _activation_copies(arch.mlp, again) * shapes.width


def _activation_copies(one: Mlp | Moe, parts: tuple[RecomputeModule, ...]) -> int:
    """Copies of the feed-forward width: up-projections, then activation and product.

    Bounds of both halves make two more, an offset of one half alone makes one.
    """
    projected = 2 if one.gated else 1
    if RecomputeModule.ACTIVATION in parts:
        return projected
    if not one.gated:
        return projected + 1
    moved = 2 if one.clamp is not None else int(one.glu_offset != 0.0)
    return projected + 2 + moved


def _moe_bytes(arch: Arch, shapes: Shapes, parts: tuple[RecomputeModule, ...]) -> float:
    """Every token is copied to `top_k` experts, evenly spread; an estimate."""
    assert arch.moe is not None
    one, hidden, width = arch.moe, arch.hidden_size, shapes.width
    choices = one.experts + one.router.zero_experts
    sent = shapes.tokens * one.top_k * one.experts / choices / shapes.tp
    copies = _activation_copies(one, parts) + 1  # and one times the router's weight
    routed = sent * (2 * hidden + one.ffn_hidden_size * copies) * width
    scores = shapes.tokens_outside * choices * 3 * FP32
    shared = 0.0
    if one.shared is not None and RecomputeModule.SHARED_EXPERTS not in parts:
        ffn = one.shared.ffn_hidden_size / shapes.tp
        shared = shapes.tokens * ffn * _activation_copies(one, parts) * width
    return routed + scores + shared
