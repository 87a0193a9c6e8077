"""Granite with windows (transformers' `granite_swa`): sinks, one full layer of four."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_ckpt.arch import Arch, Rope
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, granite
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Json, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Same


@dataclass(frozen=True, slots=True)
class LayerBases:
    """`layer_rope_theta`: a base for each layer, 0 for one that does not rotate."""

    keys: tuple[str, ...] = ("layer_rope_theta",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Which layers rotate, and their one base."""
        bases: list[float] | None = config.get("layer_rope_theta")
        if bases is None:
            return {}
        if len(bases) != config.get("num_hidden_layers"):
            raise ArchError(
                f"{where}: layer_rope_theta has {len(bases)} entries, "
                f"num_hidden_layers is {config.get('num_hidden_layers')}"
            )
        if len(used := sorted({float(base) for base in bases if base})) > 1:
            raise ArchError(
                f"{where}: layer_rope_theta has bases {used} that cannot be converted, "
                "want one, and 0 for layers without positions"
            )
        facts = {"layers.rope": [bool(base) for base in bases]}
        return {**facts, "position.base": used[0]} if used else facts

    def write(self, arch: Arch) -> dict[str, Json]:
        """The base or 0 for each layer."""
        base = arch.position.base if isinstance(arch.position, Rope) else 0
        return {"layer_rope_theta": [base if run.rope else 0 for run in arch.each_layer()]}


def first_of_four_full(config: Mapping[str, Json], count: int) -> list[str]:
    """Layers 0, 4, 8, … attend to everything."""
    del config
    return ["sliding_attention" if layer % 4 else "full_attention" for layer in range(count)]


FAMILY = Family(
    name="granite_swa",
    architecture="GraniteSWAForCausalLM",
    fields=(
        *dense.sizes(
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
        ),
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        LayerTypes(first_of_four_full, default=128),
        RopeFields(),
        LayerBases(),
        dense.kv_heads(4),
        dense.head_dim(),
        *granite.MULTIPLIERS,
    ),
    constants={**dense.CONSTANTS, "attention.sinks": True},
    rules=(
        *dense.RULES,
        *dense.MLP_BIAS,
        Same(
            LAYER + "self_attention.core_attention.softmax_offset",
            dense.HF + "self_attn.sinks",
        ),
    ),
    copies=dense.COPIES,
)
