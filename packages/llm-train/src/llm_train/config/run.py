"""A whole run."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from llm_train.config.data import DataConfig
from llm_train.config.lora import LoraConfig
from llm_train.config.memory import MemoryConfig
from llm_train.config.model import ModelConfig
from llm_train.config.moe import MoeConfig
from llm_train.config.optimizer import OptimizerConfig
from llm_train.config.parallel import ParallelConfig
from llm_train.config.recompute import RecomputeConfig
from llm_train.config.save import LogConfig, SaveConfig
from llm_train.config.section import Section
from llm_train.config.sft import SftConfig
from llm_train.config.train import TrainConfig


class Device(StrEnum):
    """Where tensors live; `auto` takes the first of cuda, npu, cpu that is present."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    NPU = "npu"


class Stage(StrEnum):
    """What is learned from: token datasets, every token; or samples, those with a label."""

    PRETRAIN = "pretrain"
    SFT = "sft"


class RunConfig(Section):
    """A whole training run, as read from its YAML file and `key=value` overrides."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig = ParallelConfig()
    moe: MoeConfig = MoeConfig()
    recompute: RecomputeConfig = RecomputeConfig()
    memory: MemoryConfig = MemoryConfig()
    stage: Stage = Field(
        default=Stage.PRETRAIN,
        description="pretrain on token datasets, or sft: fine-tune on llm-data's sample datasets",
    )
    sft: SftConfig = SftConfig()
    lora: LoraConfig | None = Field(
        default=None, description="train low-rank adapters, not the model; null = the model"
    )
    save: SaveConfig
    log: LogConfig = LogConfig()
    device: Device = Field(default=Device.AUTO, description="auto, cpu, cuda or npu")
    kernels: str | None = Field(
        default=None,
        description="package whose fused operators are used: llm-kernels-npu; null = plain torch",
    )

    @model_validator(mode="after")
    def _fill_decay_steps(self) -> Self:
        if self.optimizer.decay_steps is None:
            update = {"decay_steps": self.train.max_steps}
            # The one derived value; a frozen model leaves its own validator no other way in.
            object.__setattr__(self, "optimizer", self.optimizer.model_copy(update=update))
        return self
