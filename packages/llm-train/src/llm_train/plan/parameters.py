"""Parameters of a model by kind, whole and on one rank, counted from `arch.json`.

Shapes are those of megatron-core's local layer spec, with our modules in it (llm_train.model.spec).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
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


# What `lora.quantize` has in four bits: few biases and gates of theirs are taken for weights.
QUANTIZED = (Kind.MIXER, Kind.FEED_FORWARD, Kind.EXPERTS)
ADAPTED = (Kind.ADAPTERS, Kind.EXPERT_ADAPTERS)
TABLE = "embedding.word_embeddings.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameters of one kind: `total` in the whole model, `local` on a rank that holds them.

    `names` are those in the whole model of the tensors that they are, all of one size. A `copy` is
    a second holder of a weight that another stage has: it counts on its rank, not in the model.
    """

    kind: Kind
    total: int
    local: int
    names: tuple[str, ...] = ()
    is_copy: bool = False

    @property
    def is_expert(self) -> bool:
        """Spread by ep and etp, and replicated over what these leave."""
        return self.kind in (Kind.EXPERTS, Kind.EXPERT_ADAPTERS)

    def without(self, globs: Sequence[str]) -> Parameters:
        """Those whose name no glob matches; experts that it does are spread over ranks evenly."""
        if not globs or not self.names:
            return self
        return self.only(lambda name: not any(fnmatch.fnmatchcase(name, one) for one in globs))

    def only(self, is_wanted: Callable[[str], bool]) -> Parameters:
        """Those of such names."""
        left = tuple(name for name in self.names if is_wanted(name))
        if not self.names:
            return replace(self, total=0, local=0)
        share, whole = len(left), len(self.names)
        total, local = self.total * share // whole, self.local * share // whole
        return replace(self, names=left, total=total, local=local)


def stage_parameters(
    arch: Arch, parallel: ParallelConfig, *, vocab_rows: int
) -> list[list[Parameters]]:
    """What each pipeline stage holds; `vocab_rows` are those of the padded vocabulary."""
    stages: list[list[Parameters]] = [[] for _ in range(parallel.pp)]
    layers = each_layer(arch)
    for chunk in chunks(parallel, arch.num_layers):
        for index in chunk.layers:
            at = f"decoder.layers.{index}"
            stages[chunk.stage] += layer_parameters(arch, layers[index], parallel, at=at)
    vocabulary = _Cut(parallel.tp, Kind.EMBEDDING)
    table = vocabulary.split(vocab_rows * arch.hidden_size, TABLE)
    stages[0] += [table, *_beside_embedding(arch)]
    head, last = stages[-1], replace(table, kind=Kind.HEAD)
    if not arch.tie_embeddings:
        head.append(replace(last, names=("output_layer.weight",)))
    elif parallel.pp > 1:
        head.append(replace(last, is_copy=True))
    if arch.output_bias:
        head.append(_Cut(parallel.tp, Kind.HEAD).split(vocab_rows, "output_layer.bias"))
    head.append(_norm(arch, "decoder.final_layernorm"))
    if arch.mtp is not None:
        for index in range(arch.mtp.layers):
            head += prediction_parameters(arch, parallel, at=f"mtp.layers.{index}")
        if parallel.pp > 1 and not arch.tie_embeddings:
            head.append(replace(table, is_copy=True))
    return stages


def layer_parameters(
    arch: Arch, layer: Layer, parallel: ParallelConfig, *, at: str
) -> list[Parameters]:
    """One layer's, by names under `at`."""
    blocks = {
        ("input_layernorm", "post_self_attn_layernorm"): layer.run.mixer,
        ("pre_mlp_layernorm", "post_mlp_layernorm"): layer.run.feed_forward,
    }
    wanted = {"pre": (True, False), "post": (False, True), "sandwich": (True, True)}
    found = [
        *_MIXERS[layer.run.mixer](arch, layer, parallel),
        *_FEED_FORWARDS[layer.run.feed_forward](arch, parallel),
        *(
            _norm(arch, name)
            for names, block in blocks.items()
            for name, is_there in zip(names, wanted[arch.norm.placement], strict=True)
            if is_there and block != "none"
        ),
    ]
    return [replace(one, names=tuple(f"{at}.{name}" for name in one.names)) for one in found]


def prediction_parameters(arch: Arch, parallel: ParallelConfig, *, at: str) -> list[Parameters]:
    """It joins two normed vectors to one, and is a layer of the last kind with a norm behind."""
    joined = _Cut(parallel.tp, Kind.PREDICTION).split(
        2 * arch.hidden_size**2, f"{at}.eh_proj.weight"
    )
    norms = [_norm(arch, f"{at}.{name}") for name in ("enorm", "hnorm", "final_layernorm")]
    inside = prediction_layer(arch)
    return [joined, *norms, *layer_parameters(arch, inside, parallel, at=f"{at}.transformer_layer")]


@dataclass(frozen=True, slots=True)
class _Cut:
    """Makes parameters of a kind that are cut over `ranks`, or held whole by each."""

    ranks: int
    kind: Kind

    def split(self, count: int, *names: str) -> Parameters:
        return Parameters(kind=self.kind, total=count, local=count // self.ranks, names=names)

    def whole(self, count: int, *names: str) -> Parameters:
        return Parameters(kind=self.kind, total=count, local=count, names=names)


def _norm(arch: Arch, name: str) -> Parameters:
    tensors = ("weight", "bias") if arch.norm.kind == "layer" else ("weight",)
    count = len(tensors) * arch.hidden_size
    return _Cut(1, Kind.NORMS).whole(count, *(f"{name}.{tensor}" for tensor in tensors))


def _beside_embedding(arch: Arch) -> Iterator[Parameters]:
    if arch.position.kind == "learned":
        count = arch.max_position_embeddings * arch.hidden_size
        yield _Cut(1, Kind.EMBEDDING).whole(count, "embedding.position_embeddings.weight")
    if arch.embedding_norm:
        yield _norm(arch, "embedding.norm")


def _attention(arch: Arch, layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    assert arch.attention is not None
    one, hidden, cut = arch.attention, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    width, at = one.heads * one.head_dim, "self_attention"
    rows = width if layer.borrows else query_key_value_rows(one)
    first = f"{at}.linear_q" if layer.borrows else f"{at}.linear_qkv"
    yield cut.split(rows * hidden, f"{first}.weight")
    yield cut.split(hidden * width, f"{at}.linear_proj.weight")
    if one.qkv_bias:
        yield cut.split(rows, f"{first}.bias")
    if one.out_bias:
        yield cut.whole(hidden, f"{at}.linear_proj.bias")
    if one.qk_norm == "full":
        yield cut.split(width, f"{at}.q_layernorm.weight")
        yield cut.split(one.query_groups * one.head_dim, f"{at}.k_layernorm.weight")
    elif one.qk_norm != "none":
        yield cut.whole(2 * one.head_dim, f"{at}.q_layernorm.weight", f"{at}.k_layernorm.weight")
    if one.sinks:
        yield cut.split(one.heads, f"{at}.core_attention.softmax_offset")


def query_key_value_rows(one: Attention) -> int:
    """Outputs of the projection to queries (and their gates), keys and values."""
    return ((2 if one.output_gate else 1) * one.heads + 2 * one.query_groups) * one.head_dim


def _latent(arch: Arch, layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    """Down-projections and indexers are whole on every rank, heads are shared out."""
    assert arch.mla is not None
    one, hidden, cut = arch.mla, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    query, at = one.heads * (one.qk_nope_head_dim + one.qk_rope_head_dim), "self_attention"
    if one.q_lora_rank is None:
        yield cut.split(query * hidden, f"{at}.linear_q_proj.weight")
    else:
        yield from _down(one.q_lora_rank, arch, f"{at}.linear_q_down_proj")
        yield cut.whole(one.q_lora_rank, f"{at}.q_layernorm.weight")
        yield cut.split(query * one.q_lora_rank, f"{at}.linear_q_up_proj.weight")
    yield from _down(one.kv_lora_rank + one.qk_rope_head_dim, arch, f"{at}.linear_kv_down_proj")
    yield cut.whole(one.kv_lora_rank, f"{at}.kv_layernorm.weight")
    up = one.heads * (one.qk_nope_head_dim + one.v_head_dim)
    yield cut.split(up * one.kv_lora_rank, f"{at}.linear_kv_up_proj.weight")
    yield cut.split(one.heads * one.v_head_dim * hidden, f"{at}.linear_proj.weight")
    if one.out_bias:
        yield cut.whole(hidden, f"{at}.linear_proj.bias")
    if one.indexer is not None and layer.chooses:
        yield from _indexer(arch, f"{at}.core_attention.indexer")


def _down(rows: int, arch: Arch, name: str) -> Iterator[Parameters]:
    assert arch.mla is not None
    yield _Cut(1, Kind.MIXER).whole(rows * arch.hidden_size, f"{name}.weight")
    if arch.mla.down_bias:
        yield _Cut(1, Kind.MIXER).whole(rows, f"{name}.bias")


def _indexer(arch: Arch, at: str) -> Iterator[Parameters]:
    assert arch.mla is not None
    assert arch.mla.indexer is not None
    scorer, dim, cut = arch.mla.indexer, arch.mla.indexer.head_dim, _Cut(1, Kind.INDEXER)
    inputs = arch.mla.q_lora_rank or arch.hidden_size
    yield cut.whole(inputs * scorer.heads * dim, f"{at}.linear_wq_b.weight")
    yield cut.whole(arch.hidden_size * dim, f"{at}.linear_wk.weight")
    yield cut.whole(arch.hidden_size * scorer.heads, f"{at}.linear_weights_proj.weight")
    yield cut.whole(2 * dim, f"{at}.k_norm.weight", f"{at}.k_norm.bias")


def _dense(arch: Arch, parallel: ParallelConfig) -> Iterator[Parameters]:
    assert arch.mlp is not None
    cut = _Cut(parallel.tp, Kind.FEED_FORWARD)
    size, has_bias = arch.mlp.ffn_hidden_size, arch.mlp.bias
    yield from _linears(arch, cut, "mlp", size=size, is_gated=arch.mlp.gated, has_bias=has_bias)


def _linears(
    arch: Arch, cut: _Cut, at: str, *, size: int, is_gated: bool, has_bias: bool
) -> Iterator[Parameters]:
    """The two of a feed-forward."""
    up = (2 if is_gated else 1) * size
    yield cut.split(up * arch.hidden_size, f"{at}.linear_fc1.weight")
    yield cut.split(size * arch.hidden_size, f"{at}.linear_fc2.weight")
    if has_bias:
        yield cut.split(up, f"{at}.linear_fc1.bias")
        yield cut.whole(arch.hidden_size, f"{at}.linear_fc2.bias")


def _experts(arch: Arch, parallel: ParallelConfig, at: str = "mlp") -> Iterator[Parameters]:
    assert arch.moe is not None
    one, hidden, cut = arch.moe, arch.hidden_size, _Cut(parallel.tp, Kind.FEED_FORWARD)
    up = (2 if one.gated else 1) * one.ffn_hidden_size
    spread = _Cut(parallel.ep * parallel.etp, Kind.EXPERTS)

    def names(tensor: str) -> Iterator[str]:
        return (f"{at}.experts.local_experts.{n}.{tensor}" for n in range(one.experts))

    yield spread.split(one.experts * up * hidden, *names("linear_fc1.weight"))
    yield spread.split(one.experts * one.ffn_hidden_size * hidden, *names("linear_fc2.weight"))
    if one.bias:
        yield spread.split(one.experts * up, *names("linear_fc1.bias"))
        whole = _Cut(parallel.ep, Kind.EXPERTS)
        yield whole.split(one.experts * hidden, *names("linear_fc2.bias"))
    choices = one.experts + one.router.zero_experts
    yield cut.whole(choices * hidden, f"{at}.router.weight")
    if one.router.linear_bias:
        yield cut.whole(choices, f"{at}.router.bias")
    if one.shared is not None:
        inside, size = f"{at}.shared_experts", one.shared.ffn_hidden_size
        yield from _linears(arch, cut, inside, size=size, is_gated=one.gated, has_bias=one.bias)
        if one.shared.gated:
            yield cut.whole(hidden, f"{inside}.gate_weight")


def _delta_net(arch: Arch, _layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    """Projections, convolution, a rate and a step a head; the norm's weight is every head's."""
    assert arch.gdn is not None
    one, hidden, cut = arch.gdn, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    keys, values = one.key_heads * one.key_head_dim, one.value_heads * one.value_head_dim
    rows, mixed, at = (
        2 * keys + 2 * values + 2 * one.value_heads,
        2 * keys + values,
        "self_attention",
    )
    yield cut.split(rows * hidden, f"{at}.in_proj.weight")
    yield cut.split(values * hidden, f"{at}.out_proj.weight")
    yield cut.split(mixed * one.conv_kernel, f"{at}.conv1d.weight")
    yield cut.split(2 * one.value_heads, f"{at}.dt_bias", f"{at}.A_log")
    yield cut.whole(one.value_head_dim, f"{at}.out_norm.weight")


def _state_space(arch: Arch, _layer: Layer, parallel: ParallelConfig) -> Iterator[Parameters]:
    """Projections, convolution, a rate, a step and a skip a head, the norm."""
    assert arch.mamba2 is not None
    one, hidden, cut = arch.mamba2, arch.hidden_size, _Cut(parallel.tp, Kind.MIXER)
    inner, states, at = one.heads * one.head_dim, one.groups * one.state_dim, "mixer"
    rows, mixed = 2 * inner + 2 * states + one.heads, inner + 2 * states
    yield cut.split(rows * hidden, f"{at}.in_proj.weight")
    yield cut.split(inner * hidden, f"{at}.out_proj.weight")
    yield cut.split(mixed * one.conv_kernel, f"{at}.conv1d.weight")
    yield cut.split(3 * one.heads, f"{at}.dt_bias", f"{at}.A_log", f"{at}.D")
    if one.proj_bias:
        yield cut.split(rows, f"{at}.in_proj.bias")
        yield cut.whole(hidden, f"{at}.out_proj.bias")
    if one.conv_bias:
        yield cut.split(mixed, f"{at}.conv1d.bias")
    if one.gated_norm:
        yield cut.split(inner, f"{at}.norm.weight")


def _dense_beside_experts(arch: Arch, parallel: ParallelConfig) -> Iterator[Parameters]:
    yield from _dense(arch, parallel)
    yield from _experts(arch, parallel, "shortcut_moe")


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
