"""Hunyuan-Large (`hunyuan`, the authors' modeling_hunyuan.py; vLLM's and mlx-lm's agree).

The first of `cla_share_factor` layers makes the keys and values of all of them; each norms the keys
by a weight of its own, after rope. `rope_scaling.alpha` is no scaling that depends on length: the
base is rope_theta · alpha^(d / (d - 2)). One expert of top-1 routing keeps its softmax weight; of
several the weights are made to sum to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, moe, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Derived, Facts, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Same


@dataclass(frozen=True, slots=True)
class _SharedKeysAndValues:
    keys: tuple[str, ...] = ("use_cla", "cla_share_factor")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        del where
        return {"attention.shared_kv": config["cla_share_factor"] if config.get("use_cla") else 1}

    def write(self, arch: Arch) -> dict[str, Json]:
        count = arch.attention.shared_kv if arch.attention else 1
        return {"use_cla": count > 1, "cla_share_factor": count}


@dataclass(frozen=True, slots=True)
class _SharedMlp:
    keys: tuple[str, ...] = ("use_mixed_mlp_moe", "num_shared_expert")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        count, size = config.get("num_shared_expert", 1), config.get("intermediate_size")
        if not config.get("use_mixed_mlp_moe", False):
            return {"moe.shared": None}
        if not isinstance(count, int) or not isinstance(size, int):
            raise ArchError(f"{where}: num_shared_expert={count!r}, want one number for all layers")
        return {"moe.shared": {"ffn_hidden_size": count * size, "gated": False}}

    def write(self, arch: Arch) -> dict[str, Json]:
        if arch.moe is None or arch.moe.shared is None:
            return {"use_mixed_mlp_moe": False}
        count = arch.moe.shared.ffn_hidden_size // arch.moe.ffn_hidden_size
        return {"use_mixed_mlp_moe": True, "num_shared_expert": count}


FAMILY = Family(
    name="hunyuan",
    architecture="HunYuanForCausalLM",
    fields=(
        *dense.sizes(
            Field("intermediate_size", ("moe.ffn_hidden_size",)),
            Field("hidden_act", ("moe.activation",), default="silu", choices=dense.ACTIVATIONS),
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
        ),
        UniformLayers(),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        Field("num_experts", ("moe.experts",)),
        Field("moe_topk", ("moe.top_k",), default=1),
        Derived("moe.router.normalize", lambda config: config.get("moe_topk", 1) > 1),
        Derived("moe.router.pre_softmax", lambda config: config.get("moe_topk", 1) == 1),
        remote.Flag("use_qk_norm", "attention.qk_norm", on="head_after_rope", off="none"),
        remote.LegacyRope(),
        _SharedKeysAndValues(),
        _SharedMlp(),
        Fixed("mlp_bias", (False,)),
        Fixed("moe_drop_tokens", (False,)),
        Fixed("moe_random_routing_dropped_token", (False,)),
        Fixed("moe_layer_num_skipped", (0,)),
        Fixed("add_classification_head", (False,)),
        Fixed("position_embedding_xdrope", (False,)),
        Fixed("use_rotary_pos_emb", (True,)),
        Fixed("norm_type", ("rms", "hf_rms", "fused")),
        Fixed("pretraining_tp", (1, None)),
        Ignored(
            (
                "capacity_factor",
                "class_num",
                "dense_list",
                "enable_lm_head_fp32",
                "eod_token_id",
                "im_end_id",
                "im_newline_id",
                "im_start_id",
                "image_token_id",
                "mask_init_id",
                "num_media_embeds",
                "org_vocab_size",
                "pad_id",
                "pool_type",
                "sep_token_id",
                "skip_cls_token",
                "text_end_id",
                "text_start_id",
                "xdrope_section",
            )
        ),
        remote.RUNTIME,
    ),
    constants=moe.CONSTANTS,
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        *dense.ATTENTION_WEIGHTS,
        *dense.ATTENTION_BIAS,
        *(
            Same(LAYER + f"self_attention.linear_q.{kind}", dense.HF + f"self_attn.q_proj.{kind}")
            for kind in ("weight", "bias")
        ),
        Same(
            LAYER + "self_attention.q_layernorm.weight",
            dense.HF + "self_attn.query_layernorm.weight",
        ),
        Same(
            LAYER + "self_attention.k_layernorm.weight",
            dense.HF + "self_attn.key_layernorm.weight",
        ),
        *moe.router_rules("mlp.gate.wg.weight"),
        *moe.expert_rules(),
        *moe.shared_rules("mlp.shared_mlp."),
    ),
    copies=dense.COPIES,
    buffers=remote.BUFFERS,
)
