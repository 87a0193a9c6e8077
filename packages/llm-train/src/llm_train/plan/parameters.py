"""Parameters of a model by kind, whole and on one rank, counted from `arch.json`.

Shapes are those of megatron-core's local layer spec, with our modules in it (llm_train.model.spec).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from llm_train.arch import Arch, Attention
from llm_train.config import ParallelConfig
from llm_train.handover import SHORTCUT
from llm_train.placement import chunks
from llm_train.plan.layers import Layer, each_layer, prediction_layer


class Kind(StrEnum):
    """What a parameter is for."""

    EMBEDDING = "embedding"
    MIXER = "attention"
    FEED_FORWARD = "feed-forward"
    EXPERTS = "experts"
    INDEXER = "indexer"
    NORMS = "norms"
    HEAD = "head"
    PREDICTION = "prediction"
    ADAPTERS = "adapters"
    EXPERT_ADAPTERS = "adapters of experts"


ADAPTED = (Kind.ADAPTERS, Kind.EXPERT_ADAPTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameters of one kind: `total` in the whole model, `local` on a rank that holds them.

    A `copy` is a second holder of a weight that another stage has: it counts on its rank, not in
    the model.
    """

    kind: Kind
    total: int
    local: int
    is_copy: bool = False

    @property
    def is_expert(self) -> bool:
        """Spread by ep and etp, and replicated over what these leave."""
        return self.kind in (Kind.EXPERTS, Kind.EXPERT_ADAPTERS)


def stage_parameters(
    arch: Arch, parallel: ParallelConfig, *, vocab_rows: int
) -> list[list[Parameters]]:
    """What each pipeline stage holds; `vocab_rows` are those of the padded vocabulary."""
    stages: list[list[Parameters]] = [[] for _ in range(parallel.pp)]
    layers = each_layer(arch)
    for chunk in chunks(parallel, arch.num_layers):
        for index in chunk.layers:
            stages[chunk.stage] += layer_parameters(arch, layers[index], parallel)
    vocabulary = _Cut(parallel.tp, Kind.EMBEDDING)
    table = vocabulary.split(vocab_rows * arch.hidden_size)
    stages[0] += [table, *_beside_embedding(arch)]
    head, last = stages[-1], replace(table, kind=Kind.HEAD)
    if not arch.tie_embeddings:
        head.append(last)
    elif parallel.pp > 1:
        head.append(replace(last, is_copy=True))
    if arch.output_bias:
        head.append(_Cut(parallel.tp, Kind.HEAD).split(vocab_rows))
    head.append(_norms(arch, 1))
    if arch.mtp is not None:
        head += prediction_parameters(arch, arch.mtp.layers, parallel)
        if parallel.pp > 1 and not arch.tie_embeddings:
            head.append(replace(table, is_copy=True))
    return stages


def layer_parameters(arch: Arch, layer: Layer, parallel: ParallelConfig) -> list[Parameters]:
    """One layer's."""
    norms = {"pre": 1, "post": 1, "sandwich": 2}[arch.norm.placement]
    return [
        *_MIXERS[layer.run.mixer](arch, layer, parallel),
        *_FEED_FORWARDS[layer.run.feed_forward](arch, parallel),
        _norms(arch, norms * layer.blocks),
    ]


def prediction_parameters(arch: Arch, layers: int, parallel: ParallelConfig) -> list[Parameters]:
    """Each joins two normed vectors to one, and is a layer of the last kind with a norm behind."""
    joined = _Cut(parallel.tp, Kind.PREDICTION).split(2 * arch.hidden_size**2)
    one = [joined, _norms(arch, 3), *layer_parameters(arch, prediction_layer(arch), parallel)]
    return layers * one


@dataclass(frozen=True, slots=True)
class _Cut:
    """Makes parameters of a kind that are cut over `ranks`, or held whole by each."""

    ranks: int
    kind: Kind

    def split(self, count: int) -> Parameters:
        return Parameters(kind=self.kind, total=count, local=count // self.ranks)

    def whole(self, count: int) -> Parameters:
        return Parameters(kind=self.kind, total=count, local=count)


def _norms(arch: Arch, count: int) -> Parameters:
    vectors = 2 if arch.norm.kind == "layer" else 1
    return _Cut(1, Kind.NORMS).whole(count * vectors * arch.hidden_size)


def _beside_embedding(arch: Arch) -> Iterator[Parameters]:
    if arch.position.kind == "learned":
        yield _Cut(1, Kind.EMBEDDING).whole(arch.max_position_embeddings * arch.hidden_size)
    if arch.embedding_norm:
        yield _norms(arch, 1)


def _attention(arch: Arch, layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    assert arch.attention is not None
    one, hidden, cut = arch.attention, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    width = one.heads * one.head_dim
    rows = width if layer.borrows else query_key_value_rows(one)
    yield cut.split(rows * hidden + (rows if one.qkv_bias else 0) + hidden * width)
    if one.out_bias:
        yield cut.whole(hidden)
    if one.qk_norm == "full":
        yield cut.split(width + one.query_groups * one.head_dim)
    elif one.qk_norm != "none":
        yield cut.whole(2 * one.head_dim)
    if one.sinks:
        yield cut.split(one.heads)


def query_key_value_rows(one: Attention) -> int:
    """Outputs of the projection to queries (and their gates), keys and values."""
    return ((2 if one.output_gate else 1) * one.heads + 2 * one.query_groups) * one.head_dim


def _latent(arch: Arch, layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    """Down-projections and indexers are whole on every rank, heads are shared out."""
    assert arch.mla is not None
    one, hidden, cut = arch.mla, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    query = one.heads * (one.qk_nope_head_dim + one.qk_rope_head_dim)
    bias = 1 if one.down_bias else 0
    if one.q_lora_rank is None:
        yield cut.split(query * hidden)
    else:
        yield cut.whole(one.q_lora_rank * (hidden + bias) + one.q_lora_rank)
        yield cut.split(query * one.q_lora_rank)
    down = one.kv_lora_rank + one.qk_rope_head_dim
    yield cut.whole(down * (hidden + bias) + one.kv_lora_rank)
    yield cut.split(one.heads * (one.qk_nope_head_dim + one.v_head_dim) * one.kv_lora_rank)
    yield cut.split(one.heads * one.v_head_dim * hidden)
    if one.out_bias:
        yield cut.whole(hidden)
    if one.indexer is not None and layer.chooses:
        scorer, dim = one.indexer, one.indexer.head_dim
        queries = (one.q_lora_rank or hidden) * scorer.heads * dim
        yield _Cut(1, Kind.INDEXER).whole(queries + hidden * (dim + scorer.heads) + 2 * dim)


def _dense(arch: Arch, parallel: ParallelConfig) -> Iterator[Parameters]:
    assert arch.mlp is not None
    one, cut = arch.mlp, _Cut(parallel.tp, Kind.FEED_FORWARD)
    up = (2 if one.gated else 1) * one.ffn_hidden_size
    yield cut.split((up + one.ffn_hidden_size) * arch.hidden_size + (up if one.bias else 0))
    if one.bias:
        yield cut.whole(arch.hidden_size)


def _experts(arch: Arch, parallel: ParallelConfig) -> Iterator[Parameters]:
    assert arch.moe is not None
    one, hidden, cut = arch.moe, arch.hidden_size, _Cut(parallel.tp, Kind.FEED_FORWARD)
    up = (2 if one.gated else 1) * one.ffn_hidden_size
    elements = (up + one.ffn_hidden_size) * hidden + (up if one.bias else 0)
    yield _Cut(parallel.ep * parallel.etp, Kind.EXPERTS).split(one.experts * elements)
    if one.bias:
        yield _Cut(parallel.ep, Kind.EXPERTS).split(one.experts * hidden)
    choices = one.experts + one.router.zero_experts
    yield cut.whole(choices * (hidden + (1 if one.router.linear_bias else 0)))
    if one.shared is not None:
        size = one.shared.ffn_hidden_size
        up = (2 if one.gated else 1) * size
        yield cut.split((up + size) * hidden + (up if one.bias else 0))
        yield cut.whole((hidden if one.bias else 0) + (hidden if one.shared.gated else 0))


def _delta_net(arch: Arch, _layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    """Projections, convolution, a rate and a step a head; the norm's weight is every head's."""
    assert arch.gdn is not None
    one, hidden, cut = arch.gdn, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    keys, values = one.key_heads * one.key_head_dim, one.value_heads * one.value_head_dim
    rows, mixed = 2 * keys + 2 * values + 2 * one.value_heads, 2 * keys + values
    yield cut.split((rows + values) * hidden + mixed * one.conv_kernel + 2 * one.value_heads)
    yield cut.whole(one.value_head_dim)


def _state_space(arch: Arch, _layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    """Projections, convolution, a rate, a step and a skip a head, the norm."""
    assert arch.mamba2 is not None
    one, hidden, cut = arch.mamba2, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    inner, states = one.heads * one.head_dim, one.groups * one.state_dim
    rows, mixed = 2 * inner + 2 * states + one.heads, inner + 2 * states
    yield cut.split((rows + inner) * hidden + mixed * one.conv_kernel + 3 * one.heads)
    yield cut.split((rows if one.proj_bias else 0) + (mixed if one.conv_bias else 0))
    yield cut.split(inner if one.gated_norm else 0)
    if one.proj_bias:
        yield cut.whole(hidden)


def _dense_beside_experts(arch: Arch, parallel: ParallelConfig) -> Iterator[Parameters]:
    yield from _dense(arch, parallel)
    yield from _experts(arch, parallel)


def _nothing(*_args: object) -> Iterator[Parameters]:
    yield from ()


_CountMixer = Callable[[Arch, Layer, ParallelConfig], Iterator[Parameters]]
_Count = Callable[[Arch, ParallelConfig], Iterator[Parameters]]
_MIXERS: Mapping[str, _CountMixer] = MappingProxyType(
    {
        "attention": _attention,
        "mla": _latent,
        "gdn": _delta_net,
        "mamba2": _state_space,
        "none": _nothing,
    }
)
_FEED_FORWARDS: Mapping[str, _Count] = MappingProxyType(
    {"dense": _dense, "moe": _experts, SHORTCUT: _dense_beside_experts, "none": _nothing}
)
