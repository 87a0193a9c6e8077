"""Hunyuan-A13B (transformers' `hunyuan_v1_moe`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, hunyuan_v1_dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Ignored, Json, UniformLayers, look_up
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Same


@dataclass(frozen=True, slots=True)
class OneForAll:
    """A number, or a list of one a layer that are all equal."""

    key: str
    facts: tuple[str, ...]
    default: int | None = None
    wanted: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The number under every fact."""
        value: Json = config.get(self.key, self.default)
        values = cast("Sequence[Json]", value if isinstance(value, list) else [value])
        if len(set(values)) != 1:
            raise ArchError(f"{where}: {self.key}={value} differs between layers, want one number")
        if self.wanted is not None and values[0] not in (self.wanted, None):
            raise ArchError(f"{where}: {self.key}={value} cannot be converted, want {self.wanted}")
        return dict.fromkeys(self.facts, values[0])

    def write(self, arch: Arch) -> dict[str, Json]:
        """The number."""
        return {self.key: look_up(arch, self.facts[0])} if self.facts else {}


FAMILY = Family(
    name="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, without=("num_experts_per_tok",)),
        UniformLayers(),
        RopeFields(),
        Field("head_dim", ("attention.head_dim",), dense.divided, aliases=("attention_head_dim",)),
        Field("intermediate_size", ("moe.ffn_hidden_size", "moe.shared.ffn_hidden_size")),
        OneForAll("num_experts", ("moe.experts",)),
        OneForAll("moe_topk", ("moe.top_k",), default=1),
        OneForAll("num_shared_expert", (), wanted=1),
        *hunyuan_v1_dense.FIXED,
        *(
            Fixed(key, (value,), is_written=False)
            for key, value in (
                ("norm_topk_prob", True),
                ("use_mixed_mlp_moe", True),
                ("group_limited_greedy", False),
                ("moe_layer_num_skipped", 0),
                ("position_embedding_xdrope", False),
            )
        ),
        # Repeated, of latent attention and images that are not there, or of training.
        Ignored(
            (
                *("moe_intermediate_size", "cla_share_factor", "pretraining_tp"),
                *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"),
                *("v_head_dim", "n_group", "topk_group", "routed_scaling_factor"),
                *("moe_drop_tokens", "moe_random_routing_dropped_token", "capacity_factor"),
                *("class_num", "dense_list", "enable_lm_head_fp32", "pool_type", "pad_id"),
                *("skip_cls_token", "mask_init_id", "org_vocab_size", "num_media_embeds"),
                *("im_start_id", "im_end_id", "im_newline_id", "image_token_id"),
                *("text_start_id", "text_end_id"),
            )
        ),
    ),
    constants={**moe.CONSTANTS, "attention.qk_norm": "head_after_rope", "moe.shared.gated": False},
    rules=(
        *moe.TRUNK,
        *dense.ATTENTION_BIAS,
        *(
            Same(
                LAYER + f"self_attention.{ours}_layernorm.weight",
                dense.HF + f"self_attn.{theirs}_layernorm.weight",
            )
            for ours, theirs in (("q", "query"), ("k", "key"))
        ),
        *moe.router_rules("mlp.gate.wg.weight"),
        *moe.expert_rules(),
        *moe.shared_rules("mlp.shared_mlp."),
    ),
    copies=dense.COPIES,
)
