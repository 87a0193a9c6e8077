"""What a training run is told: frozen sections, every field with its unit and its range."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Amount = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Precision(StrEnum):
    """The type of the weights in forward and backward; the optimizer keeps fp32 masters."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Decay(StrEnum):
    """The shape of the learning rate after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Recompute(StrEnum):
    """Which activations are computed again in backward instead of being kept."""

    NONE = "none"
    FULL = "full"
    SELECTIVE = "selective"


class Resume(StrEnum):
    """What a run does with the checkpoints it finds in its own folder."""

    AUTO = "auto"
    NEVER = "never"
    REQUIRE = "require"


class Device(StrEnum):
    """Where tensors live; `auto` takes the first of cuda, npu, cpu that is present."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    NPU = "npu"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(_Section):
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


class RawConfig(_Section):
    """Raw text that the run tokenizes once, before it trains, into `save.path`/data."""

    train: tuple[str, ...] = Field(
        min_length=1,
        description="files and folders of text to train on, at least one, as llm-data reads them",
    )
    valid: tuple[str, ...] = Field(
        default=(), description="files and folders of text to evaluate on"
    )
    tokenizer: Path | None = Field(
        default=None, description="tokenizer.json or its folder; null = the one in model.load"
    )
    key: str = Field(default="text", description="key or column that holds the text")
    patterns: tuple[str, ...] = Field(
        default=(), description="globs of the files to take from folders; empty = known suffixes"
    )
    append_eod: bool = Field(
        default=True, description="end every document with the tokenizer's end-of-text token"
    )
    skip_bad_records: bool = Field(
        default=False, description="set unreadable records aside and count them, not stop"
    )
    workers: Count | None = Field(
        default=None, description="tokenizing processes; null = to fit machine and input"
    )


class DataConfig(_Section):
    """What to train on: token datasets, named by the prefix of their `.bin` and `.idx`, or text."""

    train: tuple[Path, ...] = Field(
        default=(), description="dataset prefixes to train on, at least one unless raw is set"
    )
    raw: RawConfig | None = Field(
        default=None, description="raw text instead of train and valid; needs llm-data"
    )
    weights: tuple[Positive, ...] | None = Field(
        default=None,
        description="sampling weight of each train prefix; null = in proportion to its tokens",
    )
    valid: tuple[Path, ...] = Field(
        default=(), description="dataset prefixes to evaluate on; empty = none, or valid_fraction"
    )
    valid_fraction: Fraction = Field(
        default=0.0, description="share of the train documents held out when valid is empty"
    )
    cache_dir: Path | None = Field(
        default=None, description="folder of sample indices; null = beside each dataset"
    )
    num_workers: int = Field(default=0, ge=0, description="loader processes per rank; 0 = none")
    allow_tokenizer_mismatch: bool = Field(
        default=False, description="train although dataset and model name different tokenizers"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.train) == (self.raw is not None):
            found = "both" if self.train else "neither"
            raise ValueError(f"found {found} of train and raw, wanted exactly one of them")
        if self.raw is not None and self.raw.valid and self.valid:
            raise ValueError("found valid and raw.valid, wanted at most one of them")
        if self.raw is not None and self.weights is not None:
            raise ValueError("weights is for several train prefixes; raw.train becomes one dataset")
        if self.weights is not None and len(self.weights) != len(self.train):
            raise ValueError(
                f"weights has {len(self.weights)} entries, train has {len(self.train)}: wanted one "
                "weight per prefix"
            )
        if self.has_valid and self.valid_fraction > 0:
            raise ValueError(
                f"found valid and valid_fraction={self.valid_fraction}, wanted at most one: "
                "valid_fraction splits train only when valid is empty"
            )
        return self

    @property
    def has_valid(self) -> bool:
        """There are datasets, or text, to evaluate on alone."""
        return bool(self.valid) or (self.raw is not None and bool(self.raw.valid))


class TrainConfig(_Section):
    """Steps, batches and what is computed when."""

    max_steps: Count = Field(description="optimizer steps in the whole run")
    seq_length: Count = Field(description="tokens per sequence")
    global_batch_size: Count = Field(description="sequences per optimizer step, over all ranks")
    micro_batch_size: Count = Field(default=1, description="sequences per forward on one rank")
    seed: int = Field(default=1234, ge=0, description="of initial weights, sample order, dropout")
    precision: Precision = Field(default=Precision.FP32, description="fp32, bf16 or fp16")
    eval_every: Count | None = Field(
        default=None, description="steps between evaluations; null = never"
    )
    eval_steps: Count = Field(default=8, description="global batches per evaluation")
    log_every: Count = Field(default=1, description="steps between console lines")


class OptimizerConfig(_Section):
    """AdamW and the schedule of its learning rate."""

    lr: Positive = Field(description="peak learning rate")
    min_lr: Amount = Field(default=0.0, description="learning rate at the end of the decay")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear rise from 0 to lr")
    decay: Decay = Field(default=Decay.COSINE, description="cosine, linear or constant")
    decay_steps: Count | None = Field(
        default=None,
        description="step at which min_lr is reached, warm-up included; null = train.max_steps, "
        "written in when the config is read",
    )
    weight_decay: Amount = Field(default=0.1, description="decoupled; not on norms and biases")
    beta1: Fraction = Field(default=0.9, description="decay of the first moment")
    beta2: Fraction = Field(default=0.95, description="decay of the second moment")
    eps: Positive = Field(default=1e-8, description="added to the root of the second moment")
    clip_grad: Amount = Field(default=1.0, description="largest global gradient norm; 0 = off")
    distributed: bool = Field(
        default=True, description="shard optimizer state over the data-parallel ranks"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        return self


class ParallelConfig(_Section):
    """How the model is split; data parallel takes the ranks that are left."""

    tp: Count = Field(default=1, description="tensor parallel size, in ranks")
    pp: Count = Field(default=1, description="pipeline stages")
    vpp: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="model chunks per stage (interleaved schedule); null = off"
    )
    ep: Count = Field(default=1, description="expert parallel size, in ranks")
    etp: Count = Field(default=1, description="tensor parallel size inside an expert, in ranks")
    sequence_parallel: bool = Field(
        default=True, description="shard norms and dropout along the sequence; used when tp > 1"
    )
    overlap_grad_reduce: bool = Field(
        default=False, description="reduce gradients while backward is running"
    )
    overlap_param_gather: bool = Field(
        default=False, description="gather updated weights while forward is running"
    )


class SaveConfig(_Section):
    """The run folder: checkpoints, metrics and logs."""

    path: Path = Field(description="the run folder")
    every: Count | None = Field(
        default=None, description="steps between checkpoints; null = only after the last step"
    )
    keep: Count | None = Field(
        default=None, description="how many of the newest checkpoints stay; null = all"
    )
    hf: bool = Field(
        default=False,
        description="write each checkpoint as a Hugging Face folder too: hf_NNNNNNN (llm-ckpt)",
    )
    resume: Resume = Field(
        default=Resume.AUTO,
        description="auto = continue from the newest checkpoint if there is one; never = start "
        "anew; require = an error when there is none",
    )


class LogConfig(_Section):
    """Where else metrics go, beside metrics.jsonl and the console."""

    tensorboard: bool = Field(default=False, description="also write TensorBoard events")


class RunConfig(_Section):
    """A whole training run, as read from its YAML file and `key=value` overrides."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig = ParallelConfig()
    recompute: Recompute = Field(default=Recompute.NONE, description="none, full or selective")
    save: SaveConfig
    log: LogConfig = LogConfig()
    device: Device = Field(default=Device.AUTO, description="auto, cpu, cuda or npu")

    @model_validator(mode="after")
    def _fill_decay_steps(self) -> Self:
        if self.optimizer.decay_steps is None:
            update = {"decay_steps": self.train.max_steps}
            # The one derived value; a frozen model leaves its own validator no other way in.
            object.__setattr__(self, "optimizer", self.optimizer.model_copy(update=update))
        return self
