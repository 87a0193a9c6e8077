"""What families with gated delta nets between layers of gated attention share (Qwen's naming)."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, moe
from llm_ckpt.families.fields import Codec, Facts, Field, Json
from llm_ckpt.families.layers import check_length
from llm_ckpt.families.mtp import prediction_layers
from llm_ckpt.params import LAYER, MTP
from llm_ckpt.rules import Rule, Same

_MIXERS = {"linear_attention": "gdn", "full_attention": "attention"}

# The norm inside a gated delta net is never zero-centred (SPEC.md), unlike the others here.
CONSTANTS: Mapping[str, Json] = {
    **moe.CONSTANTS,
    "norm.zero_centered": True,
    "attention.qk_norm": "head",
    "attention.output_gate": True,
}


@dataclass(frozen=True, slots=True)
class MixerTypes:
    """`layer_types`, or every `full_attention_interval`-th layer has attention."""

    keys: tuple[str, ...] = ("layer_types", "full_attention_interval")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The mixer of each layer; only attention has a position signal."""
        if not isinstance(count := config.get("num_hidden_layers"), int):
            raise ArchError(f"{where}: missing key num_hidden_layers")
        types = config.get("layer_types")
        if types is None:
            interval = config.get("full_attention_interval") or 4
            kinds = ("full_attention", "linear_attention")
            types = [kinds[bool((layer + 1) % interval)] for layer in range(count)]
        check_length(types, count, key="layer_types", where=where)
        if unknown := [kind for kind in types if kind not in _MIXERS]:
            wanted = " or ".join(_MIXERS)
            raise ArchError(f"{where}: layer_types has {unknown[0]!r}, want {wanted}")
        mixers = [_MIXERS[kind] for kind in types]
        return {"layers.mixer": mixers, "layers.rope": [mixer == "attention" for mixer in mixers]}

    def write(self, arch: Arch) -> dict[str, Json]:
        """One entry a layer."""
        types = {mixer: kind for kind, mixer in _MIXERS.items()}
        return {"layer_types": [types.get(run.mixer, run.mixer) for run in arch.each_layer()]}


SIZES: tuple[Codec, ...] = (
    MixerTypes(),
    Field("head_dim", ("attention.head_dim",), default=256),
    Field("linear_num_key_heads", ("gdn.key_heads",), default=16),
    Field("linear_num_value_heads", ("gdn.value_heads",), default=32),
    Field("linear_key_head_dim", ("gdn.key_head_dim",), default=128),
    Field("linear_value_head_dim", ("gdn.value_head_dim",), default=128),
    Field("linear_conv_kernel_dim", ("gdn.conv_kernel",), default=4),
)

# All but feed-forwards and a delta net's input projection, which is stored in several ways.
RULES: tuple[Rule, ...] = (
    *moe.TRUNK,
    *dense.ATTENTION_BIAS,
    *dense.QK_NORMS,
    *(
        Same(LAYER + f"self_attention.{ours}", dense.HF + f"linear_attn.{theirs}")
        for ours, theirs in (
            ("conv1d.weight", "conv1d.weight"),
            ("dt_bias", "dt_bias"),
            ("A_log", "A_log"),
            ("out_norm.weight", "norm.weight"),
            ("out_proj.weight", "out_proj.weight"),
        )
    ),
)
EXPERTS: tuple[Rule, ...] = (
    *moe.router_rules(),
    *moe.expert_rules(),
    *moe.shared_rules("mlp.shared_expert."),
    Same(LAYER + "mlp.shared_experts.gate_weight", dense.HF + "mlp.shared_expert_gate.weight"),
)


def with_prediction(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules and those of one prediction layer, named as Qwen names its parts."""
    own = {
        "enorm.weight": "pre_fc_norm_embedding.weight",
        "hnorm.weight": "pre_fc_norm_hidden.weight",
        "eh_proj.weight": "fc.weight",
        "final_layernorm.weight": "norm.weight",
    }
    inner = prediction_layers(rules, hf_layer=dense.HF, hf="mtp.layers.{m}.")
    names = {MTP + ours for ours in own}
    return (
        *rules,
        *(rule for rule in inner if rule.mcore not in names),
        *(Same(MTP + ours, f"mtp.{theirs}") for ours, theirs in own.items()),
    )
