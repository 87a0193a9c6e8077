"""What a run leaves behind."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field

from llm_train.config.section import Count, Positive, Section


class Resume(StrEnum):
    """What a run does with the checkpoints it finds in its own folder."""

    AUTO = "auto"
    NEVER = "never"
    REQUIRE = "require"


class SaveConfig(Section):
    """The run folder: checkpoints, metrics and logs."""

    path: Path = Field(description="the run folder")
    every: Count | None = Field(
        default=None, description="steps between checkpoints; null = only after the last step"
    )
    seconds: Positive | None = Field(
        default=None, description="also save when so many seconds have passed; null = off"
    )
    background: bool = Field(
        default=False,
        description="go on training while a checkpoint is written; at most one at a time",
    )
    keep: Count | None = Field(
        default=None, description="how many of the newest checkpoints stay; null = all"
    )
    hf: bool = Field(
        default=False,
        description="write each checkpoint as a Hugging Face folder too: hf_NNNNNNN (llm-ckpt); "
        "of adapters, the base with them merged",
    )
    resume: Resume = Field(
        default=Resume.AUTO,
        description="auto = continue from the newest checkpoint if there is one; never = start "
        "anew; require = an error when there is none",
    )


class LogConfig(Section):
    """Where else metrics go, beside metrics.jsonl and the console."""

    tensorboard: bool = Field(default=False, description="also write TensorBoard events")
