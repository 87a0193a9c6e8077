"""LongCat-Flash (transformers' `longcat_flash`): two blocks a layer, experts beside the first.

Arch.json has each block as a layer. The prediction module of the published folders (`model.mtp`),
whose parts have other names and shapes, is left out, as transformers leaves it out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, latent, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Codec, Facts, Field, Fixed, Json
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Glu, Rule, Same

HF = "model.layers.{h}."
EXPERT = LAYER + "shortcut_moe.experts.local_experts.{e}."


@dataclass(frozen=True, slots=True)
class PairedLayers:
    """`num_layers` layers of two blocks; experts work beside the first of each."""

    keys: tuple[str, ...] = ("num_layers", "num_hidden_layers")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Two runs a layer."""
        count = latent.number(config, "num_layers", where=where)
        if config.get("num_hidden_layers") not in (None, count, 2 * count):
            raise ArchError(
                f"{where}: num_hidden_layers={config['num_hidden_layers']!r}, want "
                f"num_layers({count}) or twice that"
            )
        run = {"count": 1, "mixer": "mla", "window": None, "rope": True}
        pair = [{**run, "feed_forward": kind} for kind in ("dense_shortcut_moe", "dense")]
        return {"layers": pair * count}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The number of pairs."""
        return {"num_layers": arch.num_layers // 2}


@dataclass(frozen=True, slots=True)
class LatentScales:
    """Whether queries and the key/value latent are multiplied by √(hidden size / rank)."""

    keys: tuple[str, ...] = ("mla_scale_q_lora", "mla_scale_kv_lora")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Both multipliers."""
        hidden = latent.number(config, "hidden_size", where=where)
        return {
            f"mla.{part}_scale": (hidden / latent.number(config, f"{part}_lora_rank", where=where))
            ** 0.5
            if config.get(f"mla_scale_{part}_lora", True)
            else 1.0
            for part in ("q", "kv")
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """Both keys."""
        mla = arch.document()["mla"]
        return {f"mla_scale_{part}_lora": mla[f"{part}_scale"] != 1.0 for part in ("q", "kv")}


FIELDS: tuple[Codec, ...] = (
    *(field for field in latent.SIZES if "intermediate_size" not in field.keys),
    Field("ffn_hidden_size", ("mlp.ffn_hidden_size",)),
    PairedLayers(),
    latent.LatentRope(rope=RopeFields(default_base=10_000_000.0)),
    LatentScales(),
    Field("n_routed_experts", ("moe.experts",)),
    Field("zero_expert_num", ("moe.router.zero_experts",), default=0),
    Field("moe_topk", ("moe.top_k",)),
    Field("expert_ffn_hidden_size", ("moe.ffn_hidden_size",)),
    Field("routed_scaling_factor", ("moe.router.scaling",), kind=float),
    moe.TRAINING,
    Fixed("attention_method", ("MLA",)),
    Fixed("zero_expert_type", ("identity",)),
    Fixed("router_bias", (False,)),
    Fixed("norm_topk_prob", (False, None)),
)
RULES: tuple[Rule, ...] = (
    *dense.ENDS,
    Same(LAYER + "input_layernorm.weight", HF + "input_layernorm.{s}.weight"),
    Same(LAYER + "pre_mlp_layernorm.weight", HF + "post_attention_layernorm.{s}.weight"),
    *(
        rule
        for rule in latent.attention(hf=HF + "self_attn.{s}.")
        if "linear_q_proj" not in rule.mcore
    ),
    Glu(
        LAYER + "mlp.linear_fc1.weight",
        gate=HF + "mlps.{s}.gate_proj.weight",
        up=HF + "mlps.{s}.up_proj.weight",
    ),
    Same(LAYER + "mlp.linear_fc2.weight", HF + "mlps.{s}.down_proj.weight"),
    Same(LAYER + "shortcut_moe.router.weight", HF + "mlp.router.classifier.weight"),
    Same(LAYER + "shortcut_moe.router.expert_bias", HF + "mlp.router.e_score_correction_bias"),
    Glu(
        EXPERT + "linear_fc1.weight",
        gate=HF + "mlp.experts.{e}.gate_proj.weight",
        up=HF + "mlp.experts.{e}.up_proj.weight",
    ),
    Same(EXPERT + "linear_fc2.weight", HF + "mlp.experts.{e}.down_proj.weight"),
)

FAMILY = Family(
    name="longcat_flash",
    architecture="LongcatFlashForCausalLM",
    fields=FIELDS,
    constants={
        **{key: value for key, value in moe.FACTS.items() if key != "layers.feed_forward"},
        **latent.CONSTANTS,
        "moe.router.pre_softmax": True,
        "moe.router.normalize": False,
        "moe.router.bias": True,
    },
    rules=RULES,
    copies=dense.COPIES,
    left_out=(r"model\.mtp\..*",),
)
