"""Phi-3.5-MoE (transformers' `phimoe`): layer norms, biases, SparseMixer, LongRoPE."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import Window
from llm_ckpt.params import FINAL_NORM, LAYER, OUTPUT_BIAS
from llm_ckpt.rules import Same

_ROPE = RopeFields(default_base=1e6)
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class MscaleRope:
    """LongRoPE whose attention factor is `short_mscale` and, the same number, `long_mscale`."""

    keys: tuple[str, ...] = (*_ROPE.keys, _ORIGINAL)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """`position` facts."""
        key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        given = dict(config.get(key) or {})
        short, long = (given.pop(name, None) for name in ("short_mscale", "long_mscale"))
        if short != long:
            raise ArchError(
                f"{where}: short_mscale={short} and long_mscale={long} differ; "
                "arch.json has one attention factor"
            )
        if short is not None:
            given["attention_factor"] = short
            given.setdefault(_ORIGINAL, config.get(_ORIGINAL))
        return _ROPE.read({**config, key: given}, where=where)

    def write(self, arch: Arch) -> dict[str, Json]:
        """One `rope_parameters` object."""
        keys = _ROPE.write(arch)
        parameters = dict(keys["rope_parameters"])
        if (factor := parameters.pop("attention_factor", None)) is not None:
            parameters |= {"short_mscale": factor, "long_mscale": factor}
        return {**keys, "rope_parameters": parameters}


FAMILY = Family(
    name="phimoe",
    architecture="PhimoeForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, top_k=2),
        UniformLayers(),
        MscaleRope(),
        Window(),
        dense.head_dim(),
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        Field("num_local_experts", ("moe.experts",), default=16),
        Field("lm_head_bias", ("output_bias",), default=False),
        # SparseMixer's threshold is twice this number.
        Fixed("router_jitter_noise", (0.01,)),
        Ignored(("input_jitter_noise", "hidden_dropout")),
    ),
    constants={**moe.CONSTANTS, "norm.kind": "layer", "moe.router.score": "sparsemixer"},
    rules=(
        *moe.TRUNK,
        *dense.ATTENTION_BIAS,
        Same(LAYER + "input_layernorm.bias", dense.HF + "input_layernorm.bias"),
        Same(LAYER + "pre_mlp_layernorm.bias", dense.HF + "post_attention_layernorm.bias"),
        Same(FINAL_NORM.replace("weight", "bias"), "model.norm.bias"),
        Same(OUTPUT_BIAS, "lm_head.bias"),
        *moe.router_rules("block_sparse_moe.gate.weight"),
        *moe.expert_rules("block_sparse_moe.experts.{e}.", gate="w1", up="w3", down="w2"),
    ),
    copies=dense.COPIES,
)
