"""The losses that keep experts balanced, as a step reports them."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.model.router import BALANCE_LOSSES, Z_LOSS


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLosses:
    """Mean over layers and micro-batches, without coefficients; None for what is off."""

    aux_loss: float | None = None
    seq_aux_loss: float | None = None
    z_loss: float | None = None


def collect_router_losses(
    config: TransformerConfig, *, micro_batches: int, device: torch.device
) -> RouterLosses:
    """Empty megatron-core's tracker of a step; every rank calls this and gets the whole.

    Its own collection asks ranks only for what they saw, and hangs when a stage has no experts.
    """
    kinds = {kind: name for kind, (name, _) in BALANCE_LOSSES.items() if _is_on(config, kind)}
    if config.moe_z_loss_coeff is not None:
        kinds[Z_LOSS] = Z_LOSS
    if config.num_moe_experts is None or not kinds:
        return RouterLosses()
    tracker = get_moe_layer_wise_logging_tracker()
    sums = torch.zeros(len(kinds), device=device)
    for index, name in enumerate(kinds.values()):
        if name in tracker:
            sums[index] = tracker[name]["values"].sum()
    tracker.clear()
    shared = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(sums, group=shared)
    dist.all_reduce(sums, group=parallel_state.get_pipeline_model_parallel_group())  # pyright: ignore[reportArgumentType]  # one group
    means = (sums / (_moe_layers(config) * micro_batches)).tolist()
    # Ranks that share a sequence hold parts of its balancing loss, but a mean each of the z-loss
    parts = {kind: dist.get_world_size(shared) for kind in kinds}
    for kind in BALANCE_LOSSES:
        parts[kind] = parallel_state.get_data_parallel_world_size()
    return RouterLosses(
        **{kind: mean / parts[kind] for kind, mean in zip(kinds, means, strict=True)}
    )


def _is_on(config: TransformerConfig, kind: str) -> bool:
    return kind in config.moe_router_load_balancing_type


def _moe_layers(config: TransformerConfig) -> int:
    assert isinstance(config.moe_layer_freq, list)
    # A prediction layer is one of the last kind.
    return sum(config.moe_layer_freq) + config.moe_layer_freq[-1] * (config.mtp_num_layers or 0)
