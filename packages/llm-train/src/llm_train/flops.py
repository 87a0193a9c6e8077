"""Floating-point operations that a model must do for a token, counted from its architecture.

A multiplication and the addition that follows it are two operations. Counted are the matrix
products that the mathematics needs, as in Megatron-LM's `num_floating_point_operations`:

- a product with a weight matrix of `n` elements: 2 · n a token (an embedding is a look-up: none);
- softmax attention: 2 · heads · (key width + value width) for each key that a query sees. A causal
  query sees half of the sequence on average, within a window no more than the window. (PaLM's
  formula, arXiv 2204.02311 appendix B, counts the hidden half too.);
- a backward is twice its forward, so that training takes three times the forward. What is computed
  again for the sake of memory is no work of the model's.

Norms, activations, rotations, softmax and the optimizer are left out: they are no matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.arch import Arch, LayerRun
from llm_train.handover import handovers

_BACKWARD_AND_FORWARD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFlops:
    """Operations for one token: products with weights, and attention over other tokens.

    `indexer` are those that choose which tokens are attended to, weights and scores.
    """

    weights: float
    attention: float
    indexer: float

    @property
    def total(self) -> float:
        """All together."""
        return self.weights + self.attention + self.indexer


def forward_flops(arch: Arch, seq_length: int) -> TokenFlops:
    """Operations of a token's forward, averaged over sequences of `seq_length` tokens."""
    matrix_elements, attention, indexer = 0.0, 0.0, 0.0
    for run in arch.layers:
        matrix_elements += run.count * _matrix_elements(arch, run)
        attention += run.count * _attention(arch, run, seq_length)
    matrix_elements += arch.vocab_size * arch.hidden_size
    if arch.attention is not None:
        # Layers that borrow keys and values project queries alone.
        lent = 2 * arch.attention.query_groups * arch.attention.head_dim * arch.hidden_size
        matrix_elements -= lent * sum(one.borrows for one in handovers(arch))
    if arch.mla is not None and arch.mla.indexer is not None:
        scored = arch.mla.indexer.heads * arch.mla.indexer.head_dim * mean_keys(seq_length)
        indexer = arch.num_indexers * 2.0 * (_indexer_elements(arch) + scored)
    if arch.mtp is not None:
        # Each predicts with a layer like the last and the same output matrix, after joining two
        # hidden states into one (DeepSeek-V3, arXiv 2412.19437, section 2.2).
        last, hidden = arch.layers[-1], arch.hidden_size
        depth = _matrix_elements(arch, last) + 2 * hidden * hidden + arch.vocab_size * hidden
        matrix_elements += arch.mtp.layers * depth
        attention += arch.mtp.layers * _attention(arch, last, seq_length)
    return TokenFlops(weights=2.0 * matrix_elements, attention=attention, indexer=indexer)


def logit_flops(arch: Arch) -> float:
    """Of a token's forward, the operations of its logits, those of prediction layers included.

    A token that is not learned needs none.
    """
    heads = 1 if arch.mtp is None else 1 + arch.mtp.layers
    return 2.0 * heads * arch.vocab_size * arch.hidden_size


def backward_and_forward(*, is_frozen: bool) -> int:
    """How often a training step does the products of a forward with weights.

    Frozen weights have no gradients; what flows through them has.
    """
    return _BACKWARD_AND_FORWARD - 1 if is_frozen else _BACKWARD_AND_FORWARD


def training_flops(
    arch: Arch, seq_length: int, *, is_indexer_frozen: bool = True, is_frozen: bool = False
) -> float:
    """Operations of a token's forward and backward, of a base that `is_frozen` under adapters.

    Adapters themselves are left out. A frozen indexer has no backward, nor anything to choose in a
    sequence that is all seen.
    """
    found = forward_flops(arch, seq_length)
    times = _BACKWARD_AND_FORWARD
    if is_indexer_frozen and arch.mla is not None and arch.mla.indexer is not None:
        times = 1 if seq_length > arch.mla.indexer.top_k else 0
    weights = backward_and_forward(is_frozen=is_frozen) * found.weights
    return weights + _BACKWARD_AND_FORWARD * found.attention + times * found.indexer


def mean_keys(seq_length: int, window: int | None = None) -> float:
    """Keys that a causal query sees on average: query t (from 0) sees min(t + 1, window)."""
    width = min(seq_length, window or seq_length)
    pairs = width * (width + 1) / 2 + (seq_length - width) * width
    return pairs / seq_length


def _matrix_elements(arch: Arch, run: LayerRun) -> float:
    """Elements of the matrices that one token meets in one layer."""
    return _mixer_elements(arch, run) + _feed_forward_elements(arch, run)


def _mixer_elements(arch: Arch, run: LayerRun) -> int:
    hidden = arch.hidden_size
    if run.mixer == "attention":
        one = arch.attention
        assert one is not None
        # Queries and the output, keys and values, and a gate as wide as the queries.
        heads = (3 if one.output_gate else 2) * one.heads + 2 * one.query_groups
        return hidden * heads * one.head_dim
    if run.mixer == "mla":
        return _latent_elements(arch)
    if run.mixer == "gdn":
        one = arch.gdn
        assert one is not None
        keys, values = one.key_heads * one.key_head_dim, one.value_heads * one.value_head_dim
        convolution = one.conv_kernel * (2 * keys + values)
        return hidden * (2 * keys + 3 * values + 2 * one.value_heads) + convolution
    if run.mixer == "mamba2":
        one = arch.mamba2
        assert one is not None
        inner, state = one.heads * one.head_dim, one.groups * one.state_dim
        convolution = one.conv_kernel * (inner + 2 * state)
        return hidden * (3 * inner + 2 * state + one.heads) + convolution
    return 0


def _latent_elements(arch: Arch) -> int:
    """DeepSeek-V2's multi-head latent attention (arXiv 2405.04434, section 2.1)."""
    one, hidden = arch.mla, arch.hidden_size
    assert one is not None
    query = one.heads * (one.qk_nope_head_dim + one.qk_rope_head_dim)
    rank = one.q_lora_rank
    queries = hidden * query if rank is None else rank * (hidden + query)
    down = hidden * (one.kv_lora_rank + one.qk_rope_head_dim)
    up = one.kv_lora_rank * one.heads * (one.qk_nope_head_dim + one.v_head_dim)
    return queries + down + up + one.heads * one.v_head_dim * hidden


def _indexer_elements(arch: Arch) -> int:
    """What a layer that chooses its keys has for it (DeepSeek-V3.2)."""
    assert arch.mla is not None
    assert arch.mla.indexer is not None
    one, hidden = arch.mla.indexer, arch.hidden_size
    queries = (arch.mla.q_lora_rank or hidden) * one.heads * one.head_dim
    return queries + hidden * (one.head_dim + one.heads)


def _feed_forward_elements(arch: Arch, run: LayerRun) -> float:
    hidden, found = arch.hidden_size, 0.0
    if run.feed_forward in ("dense", "dense_shortcut_moe"):
        assert arch.mlp is not None
        found += (3 if arch.mlp.gated else 2) * hidden * arch.mlp.ffn_hidden_size
    if run.feed_forward in ("moe", "dense_shortcut_moe"):
        moe = arch.moe
        assert moe is not None
        matrices = 3 if moe.gated else 2
        choices = moe.experts + moe.router.zero_experts
        found += hidden * choices
        # Of balanced choices so many are experts that compute anything.
        found += moe.top_k * moe.experts / choices * matrices * hidden * moe.ffn_hidden_size
        if moe.shared is not None:
            found += matrices * hidden * moe.shared.ffn_hidden_size
            found += hidden if moe.shared.gated else 0
    return found


def _attention(arch: Arch, run: LayerRun, seq_length: int) -> float:
    """Operations of one token's mixer beside its weights."""
    if run.mixer == "attention":
        assert arch.attention is not None
        keys = mean_keys(seq_length, run.window)
        return 4.0 * arch.attention.heads * arch.attention.head_dim * keys
    if run.mixer == "mla":
        one = arch.mla
        assert one is not None
        keys = mean_keys(seq_length, run.window if one.indexer is None else one.indexer.top_k)
        width = one.qk_nope_head_dim + one.qk_rope_head_dim + one.v_head_dim
        return 2.0 * one.heads * width * keys
    if run.mixer == "gdn":
        one = arch.gdn
        assert one is not None
        # A state of key by value is read, corrected and read again (arXiv 2412.06464, eq. 10).
        return 6.0 * one.value_heads * one.key_head_dim * one.value_head_dim
    if run.mixer == "mamba2":
        one = arch.mamba2
        assert one is not None
        # A state of head by state width is added to and read (arXiv 2405.21060, eq. 2).
        return 4.0 * one.heads * one.head_dim * one.state_dim
    return 0.0
