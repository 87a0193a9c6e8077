"""Parameters of low-rank adapters, whole and on one rank, counted from `arch.json`.

The linears are those of llm_train.model.spec, by the names that `lora.target_modules` has for them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llm_train.arch import Arch
from llm_train.config import LoraConfig, ParallelConfig
from llm_train.handover import SHORTCUT
from llm_train.plan.layers import Layer, each_layer
from llm_train.plan.parameters import Kind, Parameters, query_key_value_rows

_EMBEDDING = "embedding.word_embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A weight [outputs, inputs] by its name in a layer; `cut` names the axis that ranks share.

    There are `experts` of them, if it is theirs.
    """

    name: str
    outputs: int
    inputs: int
    cut: str
    experts: int | None = None


def stage_adapters(
    arch: Arch, parallel: ParallelConfig, lora: LoraConfig, layers_of: list[list[int]]
) -> list[list[Parameters]]:
    """What each pipeline stage trains; `layers_of` are the layers of each."""
    layers = each_layer(arch)
    stages: list[list[Parameters]] = []
    for stage, held in enumerate(layers_of):
        linears = [
            (f"decoder.layers.{index}.{one.name}", one)
            for index in held
            for one in layer_linears(arch, layers[index])
        ]
        if stage == 0:
            name = _EMBEDDING
            table = _cut_outputs(name, arch.vocab_size, arch.hidden_size)
            linears.append((name, table))
        if stage == parallel.pp - 1 and not arch.tie_embeddings:
            head = _cut_outputs("output_layer", arch.vocab_size, arch.hidden_size)
            linears.append(("output_layer", head))
        stages.append(
            [
                _parameters(one, parallel, lora)
                for name, one in linears
                if any(_matches(name, pattern) for pattern in lora.target_modules)
            ]
        )
    return stages


def saved_whole(one: Parameters, patterns: Sequence[str]) -> Parameters:
    """What of the base's parameters is in modules that train whole, as patterns name them."""
    excluded = (Kind.EXPERTS, Kind.PREDICTION, Kind.INDEXER, Kind.ADAPTERS, Kind.EXPERT_ADAPTERS)

    def is_wanted(name: str) -> bool:
        module = name.rpartition(".")[0]
        return one.kind not in excluded and any(_matches(module, found) for found in patterns)

    return one.only(is_wanted)


def layer_linears(arch: Arch, layer: Layer) -> Iterator[Linear]:
    """The linears of a layer that can be adapted."""
    yield from _MIXERS[layer.run.mixer](arch, layer)
    yield from _FEED_FORWARDS[layer.run.feed_forward](arch)


def _parameters(one: Linear, parallel: ParallelConfig, lora: LoraConfig) -> Parameters:
    ranks = parallel.tp if one.experts is None else parallel.etp
    a, b = lora.rank * one.inputs, lora.rank * one.outputs
    if lora.dora and one.name == _EMBEDDING:
        a += one.inputs  # a length for each feature, on every rank
    elif lora.dora:
        b += one.outputs
    local = {"outputs": a + b // ranks, "inputs": a // ranks + b, "none": a + b}[one.cut]
    count = one.experts or 1
    held = count // parallel.ep if one.experts is not None else 1
    kind = Kind.ADAPTERS if one.experts is None else Kind.EXPERT_ADAPTERS
    return Parameters(kind=kind, total=count * (a + b), local=held * local)


def _matches(name: str, pattern: str) -> bool:
    return name.rpartition(".")[2] == pattern or fnmatch.fnmatchcase(name, pattern)


def _cut_outputs(name: str, outputs: int, inputs: int) -> Linear:
    return Linear(name=name, outputs=outputs, inputs=inputs, cut="outputs")


def _cut_inputs(name: str, outputs: int, inputs: int) -> Linear:
    return Linear(name=name, outputs=outputs, inputs=inputs, cut="inputs")


def _attention(arch: Arch, layer: Layer) -> Iterator[Linear]:
    assert arch.attention is not None
    one, hidden = arch.attention, arch.hidden_size
    width = one.heads * one.head_dim
    rows = width if layer.borrows else query_key_value_rows(one)
    name = "linear_q" if layer.borrows else "linear_qkv"
    yield _cut_outputs(f"self_attention.{name}", rows, hidden)
    yield _cut_inputs("self_attention.linear_proj", hidden, width)


def _latent(arch: Arch, _layer: Layer) -> Iterator[Linear]:
    assert arch.mla is not None
    one, hidden, at = arch.mla, arch.hidden_size, "self_attention"
    query = one.heads * (one.qk_nope_head_dim + one.qk_rope_head_dim)
    if one.q_lora_rank is None:
        yield _cut_outputs(f"{at}.linear_q_proj", query, hidden)
    else:
        name = f"{at}.linear_q_down_proj"
        yield Linear(name=name, outputs=one.q_lora_rank, inputs=hidden, cut="none")
        yield _cut_outputs(f"{at}.linear_q_up_proj", query, one.q_lora_rank)
    down = one.kv_lora_rank + one.qk_rope_head_dim
    yield Linear(name=f"{at}.linear_kv_down_proj", outputs=down, inputs=hidden, cut="none")
    up = one.heads * (one.qk_nope_head_dim + one.v_head_dim)
    yield _cut_outputs(f"{at}.linear_kv_up_proj", up, one.kv_lora_rank)
    yield _cut_inputs(f"{at}.linear_proj", hidden, one.heads * one.v_head_dim)


def _delta_net(arch: Arch, _layer: Layer) -> Iterator[Linear]:
    assert arch.gdn is not None
    one, hidden = arch.gdn, arch.hidden_size
    keys, values = one.key_heads * one.key_head_dim, one.value_heads * one.value_head_dim
    rows = 2 * keys + 2 * values + 2 * one.value_heads
    yield _cut_outputs("self_attention.in_proj", rows, hidden)
    yield _cut_inputs("self_attention.out_proj", hidden, values)


def _state_space(arch: Arch, _layer: Layer) -> Iterator[Linear]:
    assert arch.mamba2 is not None
    one, hidden = arch.mamba2, arch.hidden_size
    inner = one.heads * one.head_dim
    yield _cut_outputs(
        "mixer.in_proj", 2 * inner + 2 * one.groups * one.state_dim + one.heads, hidden
    )
    yield _cut_inputs("mixer.out_proj", hidden, inner)


def _dense(arch: Arch) -> Iterator[Linear]:
    assert arch.mlp is not None
    size = arch.mlp.ffn_hidden_size
    yield _cut_outputs("mlp.linear_fc1", (2 if arch.mlp.gated else 1) * size, arch.hidden_size)
    yield _cut_inputs("mlp.linear_fc2", arch.hidden_size, size)


def _experts(arch: Arch, at: str = "mlp") -> Iterator[Linear]:
    assert arch.moe is not None
    moe, hidden, glu = arch.moe, arch.hidden_size, 2 if arch.moe.gated else 1
    size, count = moe.ffn_hidden_size, moe.experts
    for name, outputs, inputs, cut in (
        ("linear_fc1", glu * size, hidden, "outputs"),
        ("linear_fc2", hidden, size, "inputs"),
    ):
        full = f"{at}.experts.{name}"
        yield Linear(name=full, outputs=outputs, inputs=inputs, cut=cut, experts=count)
    if moe.shared is not None:
        size = moe.shared.ffn_hidden_size
        yield _cut_outputs(f"{at}.shared_experts.linear_fc1", glu * size, hidden)
        yield _cut_inputs(f"{at}.shared_experts.linear_fc2", hidden, size)


def _dense_beside_experts(arch: Arch) -> Iterator[Linear]:
    yield from _dense(arch)
    yield from _experts(arch, "shortcut_moe")


def _nothing(*_args: object) -> Iterator[Linear]:
    yield from ()


_MIXERS: Mapping[str, Callable[[Arch, Layer], Iterator[Linear]]] = MappingProxyType(
    {
        "attention": _attention,
        "mla": _latent,
        "gdn": _delta_net,
        "mamba2": _state_space,
        "none": _nothing,
    }
)
_FEED_FORWARDS: Mapping[str, Callable[[Arch], Iterator[Linear]]] = MappingProxyType(
    {"dense": _dense, "moe": _experts, SHORTCUT: _dense_beside_experts, "none": _nothing}
)
