"""Ling and Ring, first version and 2.0 (the authors' modeling_bailing_moe.py and …_moe_v2.py).

Both are published as `bailing_moe` (`bailing_moe_v2` is what Ming and converters say). 2.0 has
`score_function` `sigmoid`, a correction bias and groups, per-head norms of q and k before rope; the
first version scores by softmax. Prediction layers are numbered on from the decoder's, beside
num_hidden_layers. Lightning-attention models (bailing_moe_linear, 2.5) are not these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, moe, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Codec, Facts, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.families.mtp import prediction_layers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import EMBEDDING, FINAL_NORM, LAYER, MTP, OUTPUT
from llm_ckpt.rules import PackedQkv, Rule, Same

HF = dense.HF
MTP_HF = "model.layers.{n}."
GROUPS = moe.Groups()


@dataclass(frozen=True, slots=True)
class _Router:
    default_score: str
    groups: Codec = GROUPS
    keys: tuple[str, ...] = (
        "score_function",
        "norm_topk_prob",
        "routed_scaling_factor",
        "moe_router_enable_expert_bias",
        "n_group",
        "topk_group",
    )

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        score = config.get("score_function") or self.default_score
        is_normalized = config.get("norm_topk_prob", True)
        if score not in ("softmax", "sigmoid"):
            raise ArchError(f"{where}: score_function={score!r}, want 'softmax' or 'sigmoid'")
        if score == "softmax":
            if used := [key for key in self.keys[2:] if config.get(key)]:
                raise ArchError(f"{where}: {used[0]} is of 2.0; want score_function 'sigmoid'")
            return {
                "moe.router.normalize": is_normalized,
                "moe.router.pre_softmax": not is_normalized,
            }
        return {
            **self.groups.read(config, where=where),
            "moe.router.score": "sigmoid",
            "moe.router.normalize": is_normalized,
            "moe.router.scaling": float(config.get("routed_scaling_factor") or 1.0),
            "moe.router.bias": config.get("moe_router_enable_expert_bias", True),
            "moe.router.group_score": "top2",
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        if arch.moe is None:
            return {}
        router = arch.moe.router
        keys = {"score_function": router.score, "norm_topk_prob": router.normalize}
        if router.score == "softmax":
            return keys
        return {
            **keys,
            **self.groups.write(arch),
            "routed_scaling_factor": router.scaling,
            "moe_router_enable_expert_bias": router.bias,
        }


@dataclass(frozen=True, slots=True)
class _SharedSize:
    """A size that repeats the routed experts'; the authors' code uses theirs."""

    keys: tuple[str, ...] = ("moe_shared_expert_intermediate_size",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        size, routed = config.get(self.keys[0]), config.get("moe_intermediate_size")
        if size is not None and size != routed:
            raise ArchError(
                f"{where}: {self.keys[0]}={size!r}, want moe_intermediate_size={routed!r}"
            )
        return {}

    def write(self, arch: Arch) -> dict[str, Json]:
        del arch
        return {}


SIZES: tuple[Codec, ...] = (
    *dense.sizes(
        Field("intermediate_size", ("mlp.ffn_hidden_size",), default=None),
        Field(
            "hidden_act",
            ("moe.activation", "mlp.activation"),
            default="silu",
            choices=dense.ACTIVATIONS,
        ),
        without=("attention_bias",),
    ),
    UniformLayers(),
    moe.first_dense(),
    Field("use_qkv_bias", ("attention.qkv_bias",), default=False),
    remote.Flag("use_qk_norm", "attention.qk_norm", on="head", off="none"),
    Field("norm_head", ("output_normalized",), default=False),
    dense.kv_heads(),
    dense.head_dim(),
    Field("num_experts", ("moe.experts",)),
    Field("num_experts_per_tok", ("moe.top_k",)),
    Field("moe_intermediate_size", ("moe.ffn_hidden_size",)),
    moe.SharedExperts("num_shared_experts"),
    _SharedSize(),
    moe.PredictionLayers(("num_nextn_predict_layers",)),
    remote.LegacyRope(RopeFields(default_base=600000.0, fraction=1.0), is_partial=True),
    Fixed("use_bias", (False,)),
    Fixed("norm_softmax", (False,)),
    Fixed("multi_gate", (False,)),
    Fixed("use_sliding_window", (False,)),
    Fixed("pretraining_tp", (1, None)),
    Ignored(
        (
            "embedding_dropout",
            "max_window_layers",
            "moe_router_enable_shared_expert",  # repeats num_shared_experts
            "mtp_loss_scaling_factor",
            "output_dropout",
            "output_router_logits",
            "router_dtype",
            "sliding_window",
        )
    ),
    remote.RUNTIME,
)
# Of a layer; those of its dense feed-forward are not a prediction layer's.
_LAYER_RULES: tuple[Rule, ...] = (
    *dense.NORMS,
    *(
        PackedQkv(
            LAYER + f"self_attention.linear_qkv.{kind}", HF + f"attention.query_key_value.{kind}"
        )
        for kind in ("weight", "bias")
    ),
    Same(LAYER + "self_attention.q_layernorm.weight", HF + "attention.query_layernorm.weight"),
    Same(LAYER + "self_attention.k_layernorm.weight", HF + "attention.key_layernorm.weight"),
    Same(LAYER + "self_attention.linear_proj.weight", HF + "attention.dense.weight"),
    *moe.router_rules(bias="mlp.gate.expert_bias"),
    *moe.expert_rules(),
    *moe.shared_rules(),
)
FAMILY = Family(
    name="bailing_moe",
    architecture="BailingMoeForCausalLM",
    fields=(*SIZES, _Router("softmax")),
    constants=moe.CONSTANTS,
    rules=(
        Same(EMBEDDING, "model.word_embeddings.weight"),
        Same(FINAL_NORM, "model.norm.weight"),
        Same(OUTPUT, "lm_head.weight"),
        *_LAYER_RULES,
        *dense.MLP_WEIGHTS,
        *(
            Same(rule.mcore, MTP_HF + "final_layernorm.weight")
            if rule.mcore == MTP + "final_layernorm.weight"
            else rule
            for rule in prediction_layers(_LAYER_RULES, hf_layer=HF, hf=MTP_HF)
        ),
    ),
    copies={"lm_head.weight": "model.word_embeddings.weight"},
)
V2 = replace(
    FAMILY,
    name="bailing_moe_v2",
    architecture="BailingMoeV2ForCausalLM",
    fields=(*SIZES, _Router("sigmoid")),
)
