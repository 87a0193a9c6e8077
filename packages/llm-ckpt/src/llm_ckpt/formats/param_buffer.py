"""Where parameters lie in megatron-core's flat buffers, as `distrib_optim.pt` stores them.

Megatron-core puts the parameters of a model chunk into one buffer for each dtype, the last one
registered first (`_ParamAndGradBuffer` in megatron/core/distributed). The distributed optimizer
saves each of its states as such a buffer, less the padding between buckets.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llm_ckpt.arch import Arch
from llm_ckpt.errors import LayoutError

# Parameters begin on 128 bytes (of 16-bit values); buckets begin on a multiple of 128 values and
# of the data-parallel size, which therefore does not move a parameter inside its bucket.
_ALIGN = 64
_EMBEDDING, _OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
# Siblings in the order in which megatron-core's modules register them: a module's own parameters
# before its parts. Norms that Transformer Engine fuses come first in their linear.
_REGISTERED: tuple[str, ...] = (
    *("embedding", "word_embeddings", "position_embeddings", "decoder", "mtp", "layers"),
    *("enorm", "hnorm", "eh_proj", "transformer_layer"),
    *("input_layernorm", "self_attention", "core_attention", "softmax_offset", "linear_proj"),
    *("linear_qkv", "linear_q_proj", "linear_q_down_proj", "linear_q_up_proj"),
    *("linear_kv_down_proj", "linear_kv_up_proj", "q_layernorm", "k_layernorm", "kv_layernorm"),
    *("pre_mlp_layernorm", "mlp", "router", "experts", "local_experts", "shared_experts"),
    *("gate_weight", "linear_fc1", "linear_fc2", "final_layernorm", "output_layer"),
    *("layer_norm_weight", "layer_norm_bias", "weight", "bias"),
)
_ORDER: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(_REGISTERED)})
_EXPERT = re.compile(r".*\.experts\..+")


@dataclass(frozen=True, slots=True)
class BufferParam:
    """A parameter of a buffer; `has_own_bucket`: an embedding that two stages share."""

    numel: int
    has_own_bucket: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """First element of each parameter, in the order they were given, and the buffer's length."""

    starts: tuple[int, ...]
    numel: int


def place(params: Sequence[BufferParam], *, bucket_numel: int | None) -> Placed:
    """Lay parameters, given in the order of their registration, out in a buffer.

    `bucket_numel`: a bucket ends when it has so many elements; None without `overlap_grad_reduce`.
    """
    starts: list[int] = []
    base = end = 0  # where the bucket begins in the buffer, where its last parameter ends in it
    for param in reversed(params):
        # An embedding with a bucket of its own begins where it would without, too.
        start = -(-end // _ALIGN) * _ALIGN
        starts.append(base + start)
        end = start + param.numel
        if param.has_own_bucket or (bucket_numel is not None and end >= bucket_numel):
            base, end = base + end, 0
    return Placed(tuple(reversed(starts)), base + end)


def is_expert_parallel(name: str) -> bool:
    """Whether a parameter lies in the buffers of experts, where there are ranks of experts."""
    return _EXPERT.fullmatch(name) is not None


def has_own_bucket(name: str, arch: Arch, *, stages: int) -> bool:
    """Whether a chunk's parameter is an embedding that the first and the last stage both hold."""
    if stages == 1 or not (arch.tie_embeddings or arch.mtp):
        return False
    return name == _EMBEDDING or (name == _OUTPUT and arch.tie_embeddings and not arch.mtp)


def in_registered_order(names: Iterable[str]) -> list[str]:
    """Names of a chunk's parameters as megatron-core's own modules register them.

    Raises for a name of a module whose order is not known here.
    """
    return sorted(names, key=_order_key)


def _order_key(name: str) -> tuple[int, ...]:
    key: list[int] = []
    for part in name.split("."):
        match = re.fullmatch(r"(weight|bias)(\d+)", part)
        if part.isdigit():
            key.append(int(part))
        elif part in _ORDER:
            key.append(_ORDER[part])
        elif match:  # of one of many experts
            key += [_ORDER["weight"], int(match[2]), _ORDER[match[1]]]
        else:
            raise LayoutError(
                f"{name}: its place in megatron-core's optimizer buffers is not known, so the "
                "optimizer cannot be written to v1; use --layout v2 or --no-optimizer"
            )
    return tuple(key)
