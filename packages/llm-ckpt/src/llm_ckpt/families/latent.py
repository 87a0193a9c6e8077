"""Fields and rules that families with multi-head latent attention share (DeepSeek's naming)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, moe
from llm_ckpt.families.fields import Codec, Facts, Field, Fixed, Ignored, Json
from llm_ckpt.families.mtp import NUMBERED, prediction_layers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Rule, Same

# The norms of both latents take the norm class's own default, whatever rms_norm_eps is.
CONSTANTS: Mapping[str, Json] = {
    **dense.CONSTANTS,
    "layers.mixer": "mla",
    "mla.norm_eps": 1e-6,
    "mla.q_scale": 1.0,
    "mla.kv_scale": 1.0,
    "mla.indexer": None,
}
EXPERT_CONSTANTS: Mapping[str, Json] = {**CONSTANTS, **moe.FACTS}


@dataclass(frozen=True, slots=True)
class Implied:
    """A key that repeats the sum of others; absent or null says the same."""

    key: str
    of: tuple[str, ...]
    facts: tuple[str, ...]
    part: str = "mla"

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """No facts; refuses another value."""
        wanted = sum(number(config, key, where=where) for key in self.of)
        if (found := config.get(self.key)) is not None and found != wanted:
            raise ArchError(
                f"{where}: {self.key}={found!r} cannot be converted, "
                f"want {' + '.join(self.of)} = {wanted}"
            )
        return {}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The sum."""
        part = arch.document()[self.part]
        return {self.key: sum(part[fact] for fact in self.facts)} if part else {}


@dataclass(frozen=True, slots=True)
class LatentRope:
    """Rotary keys of a latent attention, whose YaRN temperature is in the softmax scale too.

    Transformers' `yarn_apply_mscale`: scale · m², m = 0.1 · mscale_all_dim · ln(factor) + 1.
    """

    interleaved: bool = True
    rope: RopeFields = field(default_factory=RopeFields)

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of any rotary family."""
        return self.rope.keys

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """`position` facts and the softmax scale."""
        facts = self.rope.read(config, where=where)
        scaling = cast("dict[str, Json]", facts["position.scaling"] or {})
        scale: float | None = None
        if (mscale := scaling.get("mscale_all_dim")) and scaling["factor"] > 1:
            parts = ("qk_nope_head_dim", "qk_rope_head_dim")
            width = sum(number(config, key, where=where) for key in parts)
            temperature = 0.1 * mscale * math.log(scaling["factor"]) + 1.0
            scale = width**-0.5 * temperature * temperature
        return {**facts, "position.interleaved": self.interleaved, "mla.scale": scale}

    def write(self, arch: Arch) -> dict[str, Json]:
        """One `rope_parameters` object."""
        return self.rope.write(arch)


@dataclass(frozen=True, slots=True)
class IndexedLayers:
    """Which layers have an indexer of their own, and which take an earlier one's choice.

    `indexer_types` says it layer by layer, older files by a pattern (`FSSF…`) or a frequency:
    layers up to `index_skip_topk_offset`, then every `index_topk_freq`-th (arXiv 2603.12201).
    """

    keys: tuple[str, ...] = (
        "indexer_types",
        "index_topk_pattern",
        "index_topk_freq",
        "index_skip_topk_offset",
    )

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The numbers of the layers that borrow."""
        count = number(config, "num_hidden_layers", where=where)
        types = _indexer_types(config, count)
        if len(types) != count or types[0] != "full" or set(types) - {"full", "shared"}:
            raise ArchError(
                f"{where}: indexers of layers are {types}, want {count} of 'full' and 'shared', "
                "the first 'full'"
            )
        borrowing = [layer for layer, kind in enumerate(types) if kind == "shared"]
        return {"mla.indexer.borrowing_layers": borrowing}

    def write(self, arch: Arch) -> dict[str, Json]:
        """Layer by layer."""
        indexer = arch.mla.indexer if arch.mla else None
        borrowing = indexer.borrowing_layers if indexer else ()
        types = ["shared" if layer in borrowing else "full" for layer in range(arch.num_layers)]
        return {self.keys[0]: types}


def _indexer_types(config: Mapping[str, Json], count: int) -> list[str]:
    given = config.get("indexer_types") or config.get("index_topk_pattern")
    if given is not None:
        return [{"F": "full", "S": "shared"}.get(kind, kind) for kind in cast("list[str]", given)]
    every = max(config.get("index_topk_freq") or 1, 1)
    first = config.get("index_skip_topk_offset", 2)
    steps = (max(layer - first + 1, 0) for layer in range(count))
    return ["shared" if step % every else "full" for step in steps]


@dataclass(frozen=True, slots=True)
class EveryLayerIndexed:
    """`layer_types` of a model all of whose layers are of one kind."""

    keys: tuple[str, ...] = ("layer_types",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """No facts; refuses another kind."""
        types = cast("list[str]", config.get("layer_types") or [])
        if others := set(types) - {"indexed_attention"}:
            raise ArchError(
                f"{where}: layer_types has {sorted(others)}, want 'indexed_attention' alone"
            )
        return {}

    def write(self, arch: Arch) -> dict[str, Json]:
        """Nothing: an absent key says the same."""
        del arch
        return {}


def number(config: Mapping[str, Json], key: str, *, where: str) -> int:
    """The integer under a key that must be there."""
    value = config.get(key)
    if not isinstance(value, int):
        raise ArchError(f"{where}: {key}={value!r}, want an integer")
    return value


def _none(config: Mapping[str, Json]) -> Json:
    del config


SIZES: tuple[Codec, ...] = (
    Field("vocab_size", ("vocab_size",)),
    Field("hidden_size", ("hidden_size",)),
    Field("max_position_embeddings", ("max_position_embeddings",)),
    Field("rms_norm_eps", ("norm.eps",), kind=float),
    Field("tie_word_embeddings", ("tie_embeddings",), default=False),
    Field(
        "hidden_act",
        ("mlp.activation", "moe.activation"),
        default="silu",
        choices=dense.ACTIVATIONS,
    ),
    Field("intermediate_size", ("mlp.ffn_hidden_size",), default=None),
    Field("num_attention_heads", ("mla.heads",)),
    Implied("num_key_value_heads", ("num_attention_heads",), ("heads",)),
    Field("q_lora_rank", ("mla.q_lora_rank",), null=_none),
    Field("kv_lora_rank", ("mla.kv_lora_rank",)),
    Field("qk_nope_head_dim", ("mla.qk_nope_head_dim",)),
    Field("qk_rope_head_dim", ("mla.qk_rope_head_dim",)),
    Field("v_head_dim", ("mla.v_head_dim",)),
    Implied(
        "qk_head_dim",
        ("qk_nope_head_dim", "qk_rope_head_dim"),
        ("qk_nope_head_dim", "qk_rope_head_dim"),
    ),
    Implied("head_dim", ("qk_rope_head_dim",), ("qk_rope_head_dim",)),
    Field("attention_bias", ("mla.down_bias", "mla.out_bias"), default=False),
    Field("mlp_bias", ("mlp.bias",), default=False),
    Fixed("pretraining_tp", (1, None)),
    # Names the authors' own code; transformers has these families itself.
    Ignored(("auto_map",)),
)


# Keys of routed experts in every such family.
EXPERTS: tuple[Codec, ...] = (
    Field("n_routed_experts", ("moe.experts",)),
    Implied("num_experts", ("n_routed_experts",), ("experts",), part="moe"),
    Implied("num_local_experts", ("n_routed_experts",), ("experts",), part="moe"),
    Field("num_experts_per_tok", ("moe.top_k",)),
    Field("moe_intermediate_size", ("moe.ffn_hidden_size",)),
    Field("routed_scaling_factor", ("moe.router.scaling",), kind=float),
    moe.SharedExperts(default=1),
    moe.LAYER_FREQUENCY,
    moe.TRAINING,
    # How the experts were spread when the model was trained.
    Ignored(("ep_size",)),
)
# DeepSeek-V3's router: sigmoid scores, a correction bias, groups ranked by their best two.
SIGMOID: tuple[Codec, ...] = (
    Fixed("scoring_func", ("sigmoid",)),
    Fixed("topk_method", ("noaux_tc",)),
    Field("norm_topk_prob", ("moe.router.normalize",), default=True),
    moe.Groups(),
)
SIGMOID_CONSTANTS: Mapping[str, Json] = {
    **EXPERT_CONSTANTS,
    "moe.router.score": "sigmoid",
    "moe.router.bias": True,
    "moe.router.group_score": "top2",
}
INDEXER_FIELDS: tuple[Codec, ...] = (
    Field("index_n_heads", ("mla.indexer.heads",)),
    Field("index_head_dim", ("mla.indexer.head_dim",)),
    Field("index_topk", ("mla.indexer.top_k",)),
)


def attention(mcore: str = LAYER, hf: str = dense.HF + "self_attn.") -> tuple[Rule, ...]:
    """Rules of latent attention whose Hugging Face names begin with `hf`."""
    at = mcore + "self_attention."
    pairs = (
        ("linear_q_proj.weight", "q_proj.weight"),
        ("linear_q_down_proj.weight", "q_a_proj.weight"),
        ("linear_q_down_proj.bias", "q_a_proj.bias"),
        ("q_layernorm.weight", "q_a_layernorm.weight"),
        ("linear_q_up_proj.weight", "q_b_proj.weight"),
        ("linear_kv_down_proj.weight", "kv_a_proj_with_mqa.weight"),
        ("linear_kv_down_proj.bias", "kv_a_proj_with_mqa.bias"),
        ("kv_layernorm.weight", "kv_a_layernorm.weight"),
        ("linear_kv_up_proj.weight", "kv_b_proj.weight"),
        ("linear_proj.weight", "o_proj.weight"),
        ("linear_proj.bias", "o_proj.bias"),
    )
    return tuple(Same(at + ours, hf + theirs) for ours, theirs in pairs)


INDEXER: tuple[Rule, ...] = tuple(
    Same(
        LAYER + f"self_attention.core_attention.indexer.{ours}",
        dense.HF + f"self_attn.indexer.{theirs}",
    )
    for ours, theirs in (
        ("linear_wq_b.weight", "wq_b.weight"),
        ("linear_wk.weight", "wk.weight"),
        ("k_norm.weight", "k_norm.weight"),
        ("k_norm.bias", "k_norm.bias"),
        ("linear_weights_proj.weight", "weights_proj.weight"),
    )
)
RULES: tuple[Rule, ...] = (*dense.ENDS, *dense.NORMS, *attention(), *dense.MLP_WEIGHTS)
EXPERT_RULES: tuple[Rule, ...] = (
    *moe.expert_rules(),
    *moe.shared_rules(),
    *moe.router_rules(),
)
_CORRECTION = Same(LAYER + "mlp.router.expert_bias", dense.HF + "mlp.gate.e_score_correction_bias")
# A layer of DeepSeek-V3, and with it the prediction layers that are numbered on from the last.
SIGMOID_RULES: tuple[Rule, ...] = (*RULES, *EXPERT_RULES, _CORRECTION)
# Families whose queries always have a latent.
INDEXED_RULES: tuple[Rule, ...] = (
    *(rule for rule in SIGMOID_RULES if "linear_q_proj" not in rule.mcore),
    *INDEXER,
)


def with_prediction(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules and those of prediction layers."""
    return (*rules, *prediction_layers(rules, hf_layer=dense.HF, hf=NUMBERED))
