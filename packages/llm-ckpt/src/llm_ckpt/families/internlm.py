"""InternLM 1 (`internlm`, the authors' modeling_internlm.py): Llama with attention biases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from llm_ckpt.arch import Arch, FactorScaling, Rope
from llm_ckpt.errors import ArchError
from llm_ckpt.families import dense, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Facts, Field, Fixed, Json, UniformLayers


@dataclass(frozen=True, slots=True)
class _Rotary:
    """`rotary` {base, type `origin` or `dynamic`, scaling_factor}; absent in the first release."""

    keys: tuple[str, ...] = ("rotary",)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        given = cast("Mapping[str, Json]", config.get("rotary") or {})
        kind, base = given.get("type", "origin"), float(given.get("base", 10000))
        if kind not in ("origin", "dynamic"):
            raise ArchError(f"{where}: rotary.type={kind!r}, want 'origin' or 'dynamic'")
        factor = float(given.get("scaling_factor", 1.0))
        scaling = {"kind": "dynamic", "factor": factor} if kind == "dynamic" else None
        return remote.rope_facts(base, scaling=scaling)

    def write(self, arch: Arch) -> dict[str, Json]:
        position = arch.position
        if not isinstance(position, Rope):
            return {}
        scaling = position.scaling
        if not isinstance(scaling, FactorScaling):
            return {"rotary": {"base": position.base, "type": "origin"}}
        factor = {"scaling_factor": scaling.factor}
        return {"rotary": {"base": position.base, "type": "dynamic", **factor}}


FAMILY = Family(
    name="internlm",
    architecture="InternLMForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias",)),
        Field("bias", ("attention.qkv_bias", "attention.out_bias"), default=True),
        UniformLayers(),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        _Rotary(),
        Fixed("pretraining_tp", (1, None)),
        remote.RUNTIME,
    ),
    constants=dense.CONSTANTS,
    rules=dense.RULES,
    copies=dense.COPIES,
    buffers=remote.BUFFERS,
)
