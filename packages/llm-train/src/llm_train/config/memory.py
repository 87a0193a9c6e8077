"""What leaves the device, or is kept in fewer bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from llm_train.config.section import Section


class KeptType(StrEnum):
    """The type in which something is kept between steps."""

    FP32 = "fp32"
    BF16 = "bf16"


class OffloadModule(StrEnum):
    """A part of every layer whose activations can wait for backward in host memory."""

    INPUT_LAYERNORM = "input_layernorm"
    SELF_ATTENTION = "self_attention"
    CORE_ATTENTION = "core_attention"
    PRE_MLP_LAYERNORM = "pre_mlp_layernorm"
    MLP = "mlp"


class MemoryConfig(Section):
    """Optimizer state and activations: where they are kept, and in how many bytes."""

    offload_optimizer: bool = Field(
        default=False,
        description="keep moments and masters in host memory; the update fetches them in parts",
    )
    optimizer_state: KeptType = Field(
        default=KeptType.FP32, description="type of Adam's moments: fp32 or bf16"
    )
    master_weights: KeptType = Field(
        default=KeptType.FP32,
        description="fp32 = a copy of bf16 weights that the update works on; bf16 = no copy",
    )
    reuse_parameter_copy: bool = Field(
        default=False,
        description="keep only the low half of each fp32 master: its high half is the bf16 weight",
    )
    gradients: KeptType = Field(
        default=KeptType.FP32,
        description="type in which gradients are summed over micro-batches and ranks",
    )
    offload_activations: tuple[OffloadModule, ...] = Field(
        default=(),
        description="parts of a layer whose activations wait in host memory: input_layernorm, "
        "self_attention, core_attention, pre_mlp_layernorm, mlp",
    )

    @model_validator(mode="after")
    def _one_master(self) -> Self:
        if self.reuse_parameter_copy and self.master_weights is KeptType.BF16:
            raise ValueError("reuse_parameter_copy halves fp32 masters, and master_weights=bf16")
        return self

    @property
    def changes_state(self) -> bool:
        """The optimizer's state is not what torch's Adam keeps."""
        return (
            self.offload_optimizer
            or self.reuse_parameter_copy
            or KeptType.BF16 in (self.optimizer_state, self.master_weights)
        )
