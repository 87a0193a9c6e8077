"""What a training run is told: frozen sections, every field with its unit and its range."""

from llm_train.config.data import DataConfig, RawConfig
from llm_train.config.lora import LoraConfig, Quantize
from llm_train.config.memory import KeptType, MemoryConfig, OffloadModule
from llm_train.config.model import ModelConfig
from llm_train.config.moe import Dispatcher, DropPolicy, MoeConfig, RouterDtype
from llm_train.config.optimizer import Decay, OptimizerConfig, WsdDecay
from llm_train.config.parallel import ContextParallel, ParallelConfig
from llm_train.config.recompute import (
    RecomputeConfig,
    RecomputeKind,
    RecomputeMethod,
    RecomputeModule,
)
from llm_train.config.run import Device, RunConfig, Stage
from llm_train.config.save import LogConfig, Resume, SaveConfig
from llm_train.config.sft import LossMean, SftConfig, TooLong, Unlearned
from llm_train.config.train import BatchRamp, OnNan, Precision, TrainConfig

__all__ = [
    "BatchRamp",
    "ContextParallel",
    "DataConfig",
    "Decay",
    "Device",
    "Dispatcher",
    "DropPolicy",
    "KeptType",
    "LogConfig",
    "LoraConfig",
    "LossMean",
    "MemoryConfig",
    "ModelConfig",
    "MoeConfig",
    "OffloadModule",
    "OnNan",
    "OptimizerConfig",
    "ParallelConfig",
    "Precision",
    "Quantize",
    "RawConfig",
    "RecomputeConfig",
    "RecomputeKind",
    "RecomputeMethod",
    "RecomputeModule",
    "Resume",
    "RouterDtype",
    "RunConfig",
    "SaveConfig",
    "SftConfig",
    "Stage",
    "TooLong",
    "TrainConfig",
    "Unlearned",
    "WsdDecay",
]
