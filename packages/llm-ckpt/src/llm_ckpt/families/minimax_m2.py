"""MiniMax-M2 (transformers' `minimax_m2`): norms over all heads, Mixtral's names."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.families.rope import RopeFields

_ROPE = RopeFields(default_base=5e6, fraction=1.0)


@dataclass(frozen=True, slots=True)
class RotaryDim:
    """Rotary keys, where `rotary_dim` may say the rotating part of a head."""

    keys: tuple[str, ...] = (*_ROPE.keys, "rotary_dim")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """`position` facts."""
        facts = _ROPE.read(config, where=where)
        if (rotary := config.get("rotary_dim")) is not None:
            facts["position.fraction"] = rotary / config.get("head_dim", 128)
        return facts

    def write(self, arch: Arch) -> dict[str, Json]:
        """One `rope_parameters` object."""
        return _ROPE.write(arch)


FAMILY = Family(
    name="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    fields=(
        *moe.sizes(top_k=8),
        UniformLayers(),
        RotaryDim(),
        dense.head_dim(128),
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        Field("num_local_experts", ("moe.experts",), default=256),
        Fixed("scoring_func", ("sigmoid",)),
        Fixed("use_routing_bias", (True,)),
        Fixed("use_qk_norm", (True,)),
        Fixed("qk_norm_type", ("per_layer",)),
        Fixed("shared_intermediate_size", (0,)),
        Fixed("sliding_window", (None,)),
        # Of MiniMax-01, another architecture, and of prediction layers, which are not published.
        Ignored(
            (
                "attn_type_list",
                "layernorm_full_attention_beta",
                "layernorm_linear_attention_beta",
                "layernorm_mlp_beta",
                "mlp_intermediate_size",
                "shared_moe_mode",
                "use_mtp",
                "num_mtp_modules",
                "mtp_transformer_layers",
            )
        ),
    ),
    constants={**moe.CONSTANTS, **moe.SIGMOID, "attention.qk_norm": "full"},
    rules=(
        *moe.TRUNK,
        *dense.QK_NORMS,
        *moe.router_rules(
            "block_sparse_moe.gate.weight", bias="block_sparse_moe.e_score_correction_bias"
        ),
        *moe.expert_rules("block_sparse_moe.experts.{e}.", gate="w1", up="w3", down="w2"),
    ),
    copies=dense.COPIES,
)
