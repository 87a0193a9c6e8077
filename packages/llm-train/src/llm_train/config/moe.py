"""How tokens reach their experts, how experts compute, and what keeps their load even."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from llm_train.config.section import Amount, Positive, Section


class Dispatcher(StrEnum):
    """The collective that brings tokens to the ranks of their experts."""

    ALLTOALL = "alltoall"
    ALLGATHER = "allgather"


class RouterDtype(StrEnum):
    """In what the router's logits are computed; `model` is the precision of the model."""

    FP32 = "fp32"
    FP64 = "fp64"
    MODEL = "model"


class DropPolicy(StrEnum):
    """Which tokens an expert keeps when more than its capacity chose it."""

    PROBS = "probs"
    POSITION = "position"


# DeepSeek-V3's (arXiv 2412.19437, section 4.2).
_BIAS_UPDATE_RATE = 1e-3


class MoeConfig(Section):
    """Mixture of experts; what the model itself is (experts, top-k, scores) stands in arch.json."""

    dispatcher: Dispatcher = Field(
        default=Dispatcher.ALLTOALL, description="alltoall or allgather of tokens to their experts"
    )
    grouped_gemm: bool = Field(
        default=False, description="one grouped matrix product over all experts of a rank"
    )
    router_dtype: RouterDtype = Field(
        default=RouterDtype.FP32, description="fp32, fp64 or model: what router logits are made in"
    )
    aux_loss_coeff: Amount = Field(
        default=0.0, description="weight of the load-balancing loss over a micro-batch; 0 = off"
    )
    seq_aux_loss_coeff: Amount = Field(
        default=0.0, description="weight of the load-balancing loss over each sequence; 0 = off"
    )
    z_loss_coeff: Amount = Field(
        default=0.0, description="weight of the router z-loss, mean logsumexp(logits)^2; 0 = off"
    )
    bias_update_rate: Amount | None = Field(
        default=None,
        description="step of the router's expert biases after every batch; 0 leaves them as they "
        "are; used by models whose router has some; null = 0.001, with lora 0",
    )
    capacity_factor: Positive | None = Field(
        default=None,
        description="an expert takes ceil(factor * tokens * top_k / experts) tokens of a rank's "
        "micro-batch and drops the rest; null = no limit",
    )
    pad_to_capacity: bool = Field(
        default=False, description="fill experts below their capacity up, so that shapes are fixed"
    )
    drop_policy: DropPolicy = Field(
        default=DropPolicy.PROBS,
        description="keep the tokens of highest weight (probs) or the first ones (position)",
    )
    shared_expert_overlap: bool = Field(
        default=False, description="compute the shared expert while tokens are on their way"
    )

    def bias_rate(self, *, is_frozen: bool) -> float:
        """`bias_update_rate` of a model that is trained, or frozen but for adapters."""
        if self.bias_update_rate is not None:
            return self.bias_update_rate
        return 0.0 if is_frozen else _BIAS_UPDATE_RATE
