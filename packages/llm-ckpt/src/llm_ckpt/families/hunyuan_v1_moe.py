"""Hunyuan-A13B (transformers' `hunyuan_v1_moe`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, moe
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
        Ignored(("eod_token_id", "sep_token_id")),
        Fixed("pretraining_tp", (1, None)),
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
