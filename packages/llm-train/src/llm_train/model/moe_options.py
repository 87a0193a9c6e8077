"""What the `moe` section of a run becomes in megatron-core's TransformerConfig."""

from typing import Any

from llm_train.config import MoeConfig, RouterDtype

# megatron-core's names of the balancing losses, each with its coefficient in our config.
BALANCE_LOSSES = (("aux_loss", "aux_loss_coeff"), ("seq_aux_loss", "seq_aux_loss_coeff"))


def moe_fields(moe: MoeConfig, *, is_frozen: bool) -> dict[str, Any]:
    """TransformerConfig arguments of a model with experts, which may be frozen but for adapters."""
    return {
        **_balance_fields(moe),
        "moe_token_dispatcher_type": moe.dispatcher.value,
        "moe_grouped_gemm": moe.grouped_gemm,
        "moe_router_dtype": None
        if moe.router_dtype is RouterDtype.MODEL
        else moe.router_dtype.value,
        "moe_z_loss_coeff": moe.z_loss_coeff or None,
        "moe_router_bias_update_rate": moe.bias_rate(is_frozen=is_frozen),
        "moe_expert_capacity_factor": moe.capacity_factor,
        "moe_pad_expert_input_to_capacity": moe.pad_to_capacity,
        "moe_token_drop_policy": moe.drop_policy.value,
        "moe_shared_expert_overlap": moe.shared_expert_overlap,
    }


def _balance_fields(moe: MoeConfig) -> dict[str, Any]:
    wanted = {
        name: coefficient
        for name, field in BALANCE_LOSSES
        if (coefficient := getattr(moe, field)) > 0
    }
    if not wanted:
        return {"moe_router_load_balancing_type": "none"}
    return {
        "moe_router_load_balancing_type": list(wanted),
        "moe_aux_loss_coeff": list(wanted.values()),
    }
