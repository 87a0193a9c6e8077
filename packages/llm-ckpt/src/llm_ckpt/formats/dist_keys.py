"""Keys of torch_dist: the parameters they hold, and the axes that stacking adds in front.

`decoder.layers.mlp.experts.experts.linear_fc1.weight` of shape [layers, experts, …] when layers are
stacked, `decoder.layers.3.mlp.experts.experts.…` of [experts, …] when they are keyed one by one.
With megatron-core's `singleton_local_shards` each expert has its own key too, and the halves of a
gated projection end in `_w` and `_v`. Prediction layers are never stacked.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.formats import names
from llm_ckpt.formats.sections import split_suffix
from llm_ckpt.layout import Shape

_EXPERT = re.compile(r"(.*experts\.)local_experts\.(\d+)\.(.+)")
_EXPERT_KEY = re.compile(r"(.*experts\.)experts\.(?:(\d+)\.)?(.+)")
_HALF = re.compile(r"(.*linear_fc1\.(?:weight|bias))_([wv])")
_LAYERS = "decoder.layers."
_ATTENTION = ("linear_qkv", "linear_proj", "core_attention", "q_layernorm", "k_layernorm")
_LATENT = (
    *("linear_q_proj", "linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj"),
    *("linear_kv_up_proj", "linear_proj", "core_attention", "q_layernorm", "kv_layernorm"),
)
_INDEXER = tuple(f"indexer.{part}" for part in ("linear_wq_b", "linear_wk", "linear_weights_proj"))
# A parameter → the modules beside it whose `_extra_state` megatron-core asks for by default, empty
# or not; a superset of what the local spec and Transformer Engine's ask for.
_EXTRA_STATE: Mapping[str, tuple[str, ...]] = {
    "self_attention.linear_qkv.weight": tuple(f"self_attention.{m}" for m in _ATTENTION),
    "self_attention.linear_kv_down_proj.weight": tuple(f"self_attention.{m}" for m in _LATENT),
    "self_attention.core_attention.indexer.linear_wk.weight": tuple(
        f"self_attention.core_attention.{m}" for m in (*_INDEXER, "indexer.k_norm")
    ),
    "self_attention.in_proj.weight": tuple(
        f"self_attention.{module}" for module in ("in_proj", "out_proj", "out_norm")
    ),
    "mixer.in_proj.weight": ("mixer.in_proj", "mixer.out_proj"),
    "mlp.linear_fc1.weight": ("mlp.linear_fc1", "mlp.linear_fc2"),
    "mlp.router.weight": ("pre_mlp_layernorm",),
    "mlp.shared_experts.linear_fc1.weight": (
        "mlp.shared_experts.linear_fc1",
        "mlp.shared_experts.linear_fc2",
    ),
    "eh_proj.weight": ("eh_proj", "enorm", "hnorm", "final_layernorm"),
}
# Fused norms whose own names layers without Transformer Engine look for.
_NORMS_APART = (
    (".self_attention.in_proj.layer_norm_", ".input_layernorm."),
    (".mixer.in_proj.layer_norm_", ".norm."),
)
_EXPERT_FC1 = "mlp.experts.local_experts.0.linear_fc1.weight"


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its stacked axes: their extents, and the place on them of one parameter."""

    key: str
    extents: Shape
    place: Shape


@dataclass(frozen=True, slots=True)
class Found:
    """What a key holds: canonical names with `{i}` and `{e}` for the axes in front of the tensor's.

    `half` is 0 or 1 for the gate or the up rows of a gated projection that is stored apart;
    `section` is a suffix of formats/sections.py.
    """

    pattern: str
    axes: tuple[str, ...]
    half: int | None
    section: str


def keys_of(
    name: str, arch: Arch, *, present: Container[str], is_per_layer: bool
) -> tuple[Key, ...]:
    """The keys a parameter is stored under, the first being megatron-core's own choice.

    A norm that the local spec and Transformer Engine's spec look for under different names has
    both. `present` are the canonical names of the whole model.
    """
    return tuple(
        _key(each, arch, is_per_layer=is_per_layer) for each in _spelled(name, arch, present)
    )


def find(key: str) -> Found:
    """The parameters under a key; the inverse of `keys_of`."""
    whole, section = split_suffix(key)
    half = _HALF.fullmatch(whole)
    whole = half[1] if half else whole
    name, axes = names.to_canonical(whole), list[str]()
    if (rest := names.stacked_rest(name)) is not None:
        name, axes = f"{_LAYERS}{{i}}.{rest}", ["i"]
    if match := _EXPERT_KEY.fullmatch(name):
        number = match[2] or "{e}"
        axes += [] if match[2] else ["e"]
        name = f"{match[1]}local_experts.{number}.{match[3]}"
    return Found(name, tuple(axes), "wv".index(half[2]) if half else None, section)


def extra_state_keys(params: Iterable[Param], arch: Arch, *, is_per_layer: bool) -> list[str]:
    """Keys of the empty objects that megatron-core wants beside linear layers."""
    present = {param.name for param in params}
    keys: list[str] = []
    for layer in range(arch.num_layers):
        at = f"{_LAYERS}{layer}."
        place = ((), ()) if is_per_layer else ((layer,), (arch.num_layers,))
        prefix = at if is_per_layer else _LAYERS
        keys += _extra_states(at, prefix, place, present, arch)
    for index in range(arch.mtp.layers if arch.mtp else 0):
        for at in (f"mtp.layers.{index}.", f"mtp.layers.{index}.transformer_layer."):
            keys += _extra_states(at, at, ((), ()), present, arch)
    if arch.mamba2 is not None:  # GPTModel leaves this one out, MambaModel does not
        keys.append(f"output_layer._extra_state/{_shard((), ())}")
    return keys


def must_be_per_layer(arch: Arch) -> bool:
    """Whether megatron-core keys the layers one by one, whatever is asked for.

    It does when they are not all alike (`non_homogeneous_layers` in transformer_block.py), and in
    a MambaStack.
    """
    kinds = {(run.mixer, run.feed_forward) for run in arch.layers}
    indexer = arch.mla.indexer if arch.mla else None
    borrows = arch.attention is not None and arch.attention.shared_kv > 1
    borrows = borrows or bool(indexer and indexer.borrowing_layers)
    return len(kinds) > 1 or arch.mamba2 is not None or borrows


def _spelled(name: str, arch: Arch, present: Container[str]) -> tuple[str, ...]:
    fused = names.to_fused(name, present, is_mamba=arch.mamba2 is not None)
    head, dot, end = name.rpartition(".pre_mlp_layernorm.")
    if dot and (f"{head}.mlp.router.weight" in present or _is_latent(head, present)):
        both = (fused, name, f"{head}.mlp.linear_fc1.layer_norm_{end}")
        return tuple(dict.fromkeys(both))
    for norm, linear in (
        ("q_layernorm", "linear_q_up_proj"),
        ("kv_layernorm", "linear_kv_up_proj"),
    ):
        head, dot, end = name.rpartition(f".self_attention.{norm}.")
        if dot and _is_latent(head, present):
            return (name, f"{head}.self_attention.{linear}.layer_norm_{end}")
    apart = [fused.replace(norm, own) for norm, own in _NORMS_APART if norm in fused]
    return (fused, *apart)


def _is_latent(layer: str, present: Container[str]) -> bool:
    return f"{layer}.self_attention.linear_kv_down_proj.weight" in present


def _key(name: str, arch: Arch, *, is_per_layer: bool) -> Key:
    extents, place = list[int](), list[int]()
    split = names.split_layer(name)
    if split is not None and not is_per_layer:
        name, extents, place = f"{_LAYERS}{split[1]}", [arch.num_layers], [split[0]]
    if arch.moe is not None and (match := _EXPERT.fullmatch(name)):
        name = f"{match[1]}experts.{match[3]}"
        extents, place = [*extents, arch.moe.experts], [*place, int(match[2])]
    return Key(name, tuple(extents), tuple(place))


def _extra_states(
    at: str, prefix: str, place: tuple[Shape, Shape], present: Container[str], arch: Arch
) -> Iterator[str]:
    for param, modules in _EXTRA_STATE.items():
        if at + param in present:
            for module in modules:
                yield f"{prefix}{module}._extra_state/{_shard(*place)}"
    if arch.moe is not None and at + _EXPERT_FC1 in present:
        for expert in range(arch.moe.experts):
            shard = _shard((*place[0], expert), (*place[1], arch.moe.experts))
            for linear in ("linear_fc1", "linear_fc2"):
                yield f"{prefix}mlp.experts.experts.{linear}._extra_state/{shard}"


def _shard(offsets: Shape, extents: Shape) -> str:
    """A ShardedObject's end of key; without stacked axes it is number 0 of 1."""
    text = (".".join(map(str, numbers)) for numbers in (offsets or (0,), extents or (1,)))
    return "shard_" + "_".join(text)
