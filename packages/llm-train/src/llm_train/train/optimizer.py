"""megatron-core's optimizer and learning-rate schedule, and what its checkpoints need from us."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamGroupOverride,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.optimizer.optimizer_config import ParamPredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from llm_train import config
from llm_train.train.fsdp import ShardedModel
from llm_train.train.memory.adam import KeptAdam, is_fused
from llm_train.train.memory.attach import keep_state, leave_masters_to_inner, state_layout
from llm_train.train.selection import scale_of

SHARDING_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}
# Of a group of parameters: all else is what the config of a run says.
_LOADED = frozenset({"params", "step"})


def build_optimizer(
    settings: config.OptimizerConfig,
    chunks: Sequence[DistributedDataParallel | ShardedModel],
    *,
    dtype: torch.dtype,
    overlap_param_gather: bool,
    tokens_per_micro_batch: int,
    memory: config.MemoryConfig,
) -> MegatronOptimizer:
    """AdamW with fp32 masters, or what `memory` makes of it; norms and biases are not decayed.

    The rows of a sharded model are masters themselves.
    """
    is_sharded = isinstance(chunks[0], ShardedModel)
    wanted = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        use_distributed_optimizer=settings.distributed and not is_sharded,
        overlap_param_gather=overlap_param_gather,
        bf16=dtype is torch.bfloat16 and not is_sharded,
        fp16=dtype is torch.float16,
        params_dtype=torch.float32 if is_sharded else dtype,
        initial_loss_scale=_first_loss_scale(tokens_per_micro_batch),
    )
    rates = _overrides(wanted, settings)
    if memory.changes_state:
        leave_masters_to_inner(wanted)
    optimizer = _without_stubs(get_megatron_optimizer(wanted, list(chunks), rates))
    if is_sharded:
        _count_every_rank(optimizer)
    if not memory.changes_state:
        return optimizer
    for part in _distributed_parts(optimizer):
        keep_state(part, state_layout(memory))
    return optimizer


def _without_stubs(optimizer: MegatronOptimizer) -> MegatronOptimizer:
    """The chain without those that no rank has a parameter for: adapters of experts alone have no
    dense part. megatron-core keeps such an optimizer, with None where torch's would be.
    """
    if not isinstance(optimizer, ChainedOptimizer):
        return optimizer
    parts = [
        part
        for part in optimizer.chained_optimizers
        if not getattr(part, "is_stub_optimizer", False)
    ]
    return ChainedOptimizer(parts)


def _overrides(
    wanted: OptimizerConfig, settings: config.OptimizerConfig
) -> dict[ParamKey, ParamGroupOverride]:
    """megatron-core's own, and a group for each factor of the learning rate."""
    found = get_standard_config_overrides(wanted)
    for scale in set(settings.lr_scales.values()):
        predicate = ParamPredicate(name=f"lr_scale {scale}", fn=partial(_is_scaled, scale))
        rates = {"max_lr": settings.lr * scale, "min_lr": settings.min_lr * scale}
        found[ParamKey(predicate=predicate)] = cast("ParamGroupOverride", rates)
    return found


def _is_scaled(scale: float, parameter: torch.nn.Parameter) -> bool:
    return scale_of(parameter) == scale


def main_lr(optimizer: MegatronOptimizer) -> float:
    """The learning rate of what no glob has given another."""
    groups = optimizer.param_groups
    own = [group for group in groups if group.get("default_config", True)]
    return float((own or groups)[0]["lr"])


def _count_every_rank(optimizer: MegatronOptimizer) -> None:
    """Sum the gradient norm over all ranks, which have different rows."""
    for part in _parts(optimizer):
        group = parallel_state.get_intra_distributed_optimizer_instance_group()
        part.grad_stats_parallel_group = group  # pyright: ignore[reportAttributeAccessIssue]


def _first_loss_scale(tokens: int) -> float:
    """Torch's own first fp16 scale, 2^16, for a loss that is a sum over `tokens`, not a mean.

    megatron-core's 2^32 would skip the first dozens of steps.
    """
    return 2.0 ** max(0, 16 - (tokens - 1).bit_length())


def build_schedule(
    settings: config.OptimizerConfig, optimizer: MegatronOptimizer
) -> OptimizerParamScheduler:
    """Linear warm-up, then the named decay, counted in optimizer steps."""
    assert settings.decay_steps is not None
    decay = settings.decay
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=settings.decay_steps,
        lr_decay_style="WSD" if decay is config.Decay.WSD else decay.value,
        wsd_decay_steps=settings.wsd_decay_steps,
        lr_wsd_decay_style=settings.wsd_decay.value,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=settings.decay_steps,
        wd_incr_style="constant",
    )


def prepare_state(optimizer: MegatronOptimizer) -> None:
    """Make moments exist before a checkpoint is described or loaded.

    megatron-core 0.16.1 without Apex expects them at both times and makes them at neither; and it
    looks for them in its gathered buffers where they would be if these kept their filling.
    """
    for distributed in _distributed_parts(optimizer):
        if isinstance(distributed.optimizer, KeptAdam):
            distributed.optimizer.make_state()
        else:
            make_moments(distributed.optimizer)
            distributed._set_main_param_and_optimizer_states = MethodType(_copy_states, distributed)
        distributed.sharded_param_state_fully_reshardable = MethodType(_sharded_states, distributed)
        if not any(group["params"] for group in distributed.param_groups):
            distributed.state_dict = MethodType(_state_of_nothing, distributed)


def unshare_steps(optimizer: MegatronOptimizer) -> None:
    """Give every parameter its own step counter again after a load.

    megatron-core loads one tensor into all of them; each parameter's update then adds to the same
    counter, Adam's bias correction is lost, and the loss is silently wrong.
    """
    for distributed in _distributed_parts(optimizer):
        for state in distributed.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].detach().clone()


def match_common_state(
    optimizer: MegatronOptimizer, loaded: Mapping[Any, Any]
) -> Mapping[Any, Any]:
    """The loaded state in the shape this optimizer has.

    The number of chained optimizers follows from the expert-parallel size; the moments do not.
    Hyperparameters come from the config of this run, Adam's step and the loss scale from the
    checkpoint.
    """
    parts = _distributed_parts(optimizer)
    if not parts:
        return loaded
    first, step = _first(loaded), saved_step(loaded)
    scaler = {"grad_scaler": first["grad_scaler"]} if "grad_scaler" in first else {}
    states = []
    for index, part in enumerate(parts):
        current = part.state_dict()
        for group in current["optimizer"]["param_groups"]:
            group["step"] = step
        # A stage without layers, or with dense ones alone, has an optimizer of nothing.
        moments = (loaded if len(parts) == 1 else loaded[index]).get("param_state", {})
        kind = SHARDING_METADATA["distrib_optim_sharding_type"]
        states.append(
            {**current, **scaler, "param_state": moments, "param_state_sharding_type": kind}
        )
    return states[0] if len(states) == 1 else dict(enumerate(states))


@contextmanager
def kept_rates(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Around a load: each group of parameters has its own hyperparameters again.

    megatron-core tells the groups of a state by multipliers that all factors of `lr_scales` have
    alike, so that every group would go on at the rate of the last.
    """
    groups = [group for inner in inner_optimizers(optimizer) for group in inner.param_groups]
    kept = [{key: group[key] for key in group.keys() - _LOADED} for group in groups]
    yield
    loaded = (group for inner in inner_optimizers(optimizer) for group in inner.param_groups)
    for group, own in zip(loaded, kept, strict=True):
        group.update(own)


def saved_step(loaded: Mapping[Any, Any]) -> Any:
    """Adam's step in the loaded state of any number of chained optimizers."""
    return _first(loaded)["optimizer"]["param_groups"][0]["step"]


def inner_optimizers(optimizer: MegatronOptimizer) -> Iterator[torch.optim.Optimizer]:
    """Torch's own, inside each of megatron-core's."""
    return (part.optimizer for part in _parts(optimizer))


def update_in_one_pass(optimizer: MegatronOptimizer) -> None:
    """Have torch's AdamW read and write each of its arrays once, where it can.

    After a load: a checkpoint may bring the choice of another device with it.
    """
    for inner in inner_optimizers(optimizer):
        for group in inner.param_groups:
            group["fused"] = all(is_fused(parameter) for parameter in group["params"])


def make_moments(inner: torch.optim.Optimizer) -> None:
    """Give an Adam that has not stepped yet the moments that it begins with."""
    for group in inner.param_groups:
        for parameter in group["params"]:
            if "step" not in inner.state[parameter]:
                inner.state[parameter].update(
                    step=torch.tensor(0.0),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )


def _first(loaded: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return loaded if "optimizer" in loaded else loaded[0]


def _distributed_parts(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    return [one for one in _parts(optimizer) if isinstance(one, DistributedOptimizer)]


def _parts(optimizer: MegatronOptimizer) -> Iterator[MegatronOptimizer]:
    yield from getattr(optimizer, "chained_optimizers", [optimizer])


@torch.no_grad()
def _copy_states(
    self: DistributedOptimizer, model_param: torch.nn.Parameter, tensors: Mapping[str, torch.Tensor]
) -> None:
    """megatron-core's own version does not know torch Adam's `step` and trips over autograd."""
    group, order = self.model_param_group_index_map[model_param]
    main = self.optimizer.param_groups[group]["params"][order]
    for key, target in {"param": main, **self.optimizer.state[main]}.items():
        if key != "step":
            target.copy_(tensors[key])


def _state_of_nothing(self: DistributedOptimizer) -> dict[str, Any]:
    """The state of a rank that holds no parameter; megatron-core's own wants a step from one.

    Only the first rank's step is kept, and that rank holds the embedding.
    """
    groups = self.optimizer.state_dict()["param_groups"]
    nameless = [{key: value for key, value in g.items() if key != "params"} for g in groups]
    state: dict[str, Any] = {"optimizer": {"param_groups": [{**g, "step": 0.0} for g in nameless]}}
    if self.grad_scaler:
        state["grad_scaler"] = self.grad_scaler.state_dict()
    return state


def _sharded_states(self: DistributedOptimizer, *args: Any, **kwargs: Any) -> Any:
    """megatron-core's own, over gathered moments that keep their filling.

    Only here: what `save_parameter_state` writes has none, and its reader expects none.
    """
    self.get_parameter_state_dp_zero = MethodType(_gathered_states, self)
    try:
        return DistributedOptimizer.sharded_param_state_fully_reshardable(self, *args, **kwargs)
    finally:
        del self.get_parameter_state_dp_zero


def _gathered_states(
    self: DistributedOptimizer, *args: Any, **kwargs: Any
) -> dict[Any, Any] | None:
    """megatron-core's gathered moments, with the filling back between buckets.

    Its buckets end at multiples of 128 elements and its index of parameters counts that; the
    gathered tensors leave it out, so every parameter after a bucket that is filled up would be
    saved shifted.
    """
    gather: Any = DistributedOptimizer.get_parameter_state_dp_zero
    state: dict[Any, Any] | None = gather(self, *args, **kwargs)
    if state is None:
        return None
    for index, buffer in enumerate(self.buffers):
        for gathered in state[index].values():
            for kind in ("param", "exp_avg", "exp_avg_sq"):
                if kind in gathered:
                    gathered[kind] = _with_filling(gathered[kind], buffer.buckets)
    return state


def _with_filling(gathered: torch.Tensor, buckets: Sequence[Any]) -> torch.Tensor:
    parts: list[torch.Tensor] = []
    start = 0
    for bucket in buckets:
        stop = start + bucket.numel_unpadded
        filling = bucket.grad_data.numel() - bucket.numel_unpadded
        parts += [gathered[start:stop], gathered.new_zeros(filling)]
        start = stop
    return torch.cat(parts)
