"""Which model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from llm_train.config.section import Positive, Section


class ModelConfig(Section):
    """Which model, and where its first weights come from: exactly one of `load` and `arch`."""

    load: Path | None = Field(
        default=None, description="HF folder or Megatron v1/v2 checkpoint to take weights from"
    )
    arch: Path | None = Field(
        default=None, description="arch.json of a model that starts from random weights"
    )
    init_std: Positive = Field(
        default=0.02, description="standard deviation of random initial weights"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.load is None) == (self.arch is None):
            found = "neither" if self.load is None else "both"
            raise ValueError(f"found {found} of load and arch, wanted exactly one of them")
        return self
