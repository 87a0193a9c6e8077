"""What backward computes again instead of forward keeping it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from llm_train.config.section import Count, Section


class RecomputeKind(StrEnum):
    """Nothing, whole layers, or parts of every layer."""

    NONE = "none"
    FULL = "full"
    SELECTIVE = "selective"


class RecomputeMethod(StrEnum):
    """Which layers `full` takes: all, `layers` at a time, or the first `layers` of a chunk."""

    UNIFORM = "uniform"
    BLOCK = "block"


class RecomputeModule(StrEnum):
    """A part of a layer that `selective` can take."""

    CORE_ATTENTION = "core_attention"
    LAYERNORM = "layernorm"
    ACTIVATION = "activation"
    MLP = "mlp"
    MOE = "moe"
    SHARED_EXPERTS = "shared_experts"
    MLA_UP_PROJ = "mla_up_proj"


class RecomputeConfig(Section):
    """Activations that backward computes again; in YAML a bare word is its `kind`."""

    kind: RecomputeKind = Field(
        default=RecomputeKind.NONE,
        description="none; full = whole layers; selective = the parts in modules",
    )
    method: RecomputeMethod = Field(
        default=RecomputeMethod.UNIFORM,
        description="of full: uniform = every layer, keeping one input for each `layers` of them; "
        "block = only the first `layers` of each model chunk",
    )
    layers: Count = Field(
        default=1, description="of full: layers in a unit (uniform) or of a chunk (block)"
    )
    modules: tuple[RecomputeModule, ...] = Field(
        default=(),
        description="of selective: core_attention (of gdn and mamba2 the recurrence), layernorm "
        "and activation (their outputs only), mlp, moe, shared_experts, mla_up_proj; empty = "
        "core_attention",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        is_full = self.kind is RecomputeKind.FULL
        if not is_full and self.method is not RecomputeMethod.UNIFORM:
            raise ValueError(f"method={self.method} is for kind=full, found kind={self.kind}")
        if not is_full and self.layers > 1:
            raise ValueError(f"layers={self.layers} is for kind=full, found kind={self.kind}")
        if self.modules and self.kind is not RecomputeKind.SELECTIVE:
            raise ValueError(f"modules is for kind=selective, found kind={self.kind}")
        if len(set(self.modules)) < len(self.modules):
            raise ValueError(f"modules names one twice: {', '.join(self.modules)}")
        return self

    @property
    def parts(self) -> tuple[RecomputeModule, ...]:
        """The parts of a layer that are computed again, none unless selective."""
        if self.kind is not RecomputeKind.SELECTIVE:
            return ()
        return self.modules or (RecomputeModule.CORE_ATTENTION,)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Editors are told of the bare word too."""
        words = [kind.value for kind in RecomputeKind]
        return {"anyOf": [handler(core_schema), {"enum": words}]}
