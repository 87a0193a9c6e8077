"""The optimizer and its learning rate."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from llm_train.config.section import Amount, Count, Fraction, Positive, Section


class Decay(StrEnum):
    """The shape of the learning rate after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    INVERSE_SQUARE_ROOT = "inverse-square-root"
    WSD = "wsd"


class WsdDecay(StrEnum):
    """How the learning rate falls from its stable value to `min_lr` under `decay: wsd`."""

    LINEAR = "linear"
    COSINE = "cosine"
    EXPONENTIAL = "exponential"
    MINUS_SQRT = "minus_sqrt"


class OptimizerConfig(Section):
    """AdamW and the schedule of its learning rate."""

    lr: Positive = Field(description="peak learning rate")
    min_lr: Amount = Field(default=0.0, description="learning rate at the end of the decay")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear rise from 0 to lr")
    decay: Decay = Field(
        default=Decay.COSINE,
        description="cosine, linear, constant, inverse-square-root or wsd (warm-up, stable, decay)",
    )
    decay_steps: Count | None = Field(
        default=None,
        description="step at which min_lr is reached, warm-up included; null = train.max_steps, "
        "written in when the config is read",
    )
    wsd_decay_steps: Count | None = Field(
        default=None, description="the last of decay_steps, in which wsd decays; needs decay=wsd"
    )
    wsd_decay: WsdDecay = Field(
        default=WsdDecay.LINEAR,
        description="shape of that decay: linear, cosine, exponential or minus_sqrt",
    )
    weight_decay: Amount = Field(default=0.1, description="decoupled; not on norms and biases")
    beta1: Fraction = Field(default=0.9, description="decay of the first moment")
    beta2: Fraction = Field(default=0.95, description="decay of the second moment")
    eps: Positive = Field(default=1e-8, description="added to the root of the second moment")
    clip_grad: Amount = Field(default=1.0, description="largest global gradient norm; 0 = off")
    lr_scales: dict[str, Positive] = Field(
        default_factory=dict[str, float],
        description="glob over parameter names (decoder.layers.0.*, *.router.weight) → factor of "
        "lr and min_lr; a name takes the first glob that it matches",
    )
    frozen: tuple[str, ...] = Field(
        default=(), description="globs over parameter names; what they match does not train"
    )
    distributed: bool = Field(
        default=True, description="shard optimizer state over the data-parallel ranks"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        if (self.decay is Decay.WSD) != (self.wsd_decay_steps is not None):
            raise ValueError(
                f"decay={self.decay.value} with wsd_decay_steps={self.wsd_decay_steps}: wanted "
                "both decay=wsd and wsd_decay_steps, or neither"
            )
        if self.wsd_decay is not WsdDecay.LINEAR and self.decay is not Decay.WSD:
            raise ValueError(
                f"wsd_decay={self.wsd_decay.value}, but decay={self.decay.value}; wanted decay=wsd"
            )
        return self
