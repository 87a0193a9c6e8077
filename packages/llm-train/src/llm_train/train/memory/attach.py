"""`KeptAdam` inside megatron-core's distributed optimizer."""

from collections.abc import Mapping
from types import MethodType
from typing import Any, cast

import torch
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from llm_train.config import KeptType, MemoryConfig
from llm_train.train.memory.adam import KeptAdam, Master, StateLayout

_TYPES: Mapping[KeptType, torch.dtype] = {
    KeptType.FP32: torch.float32,
    KeptType.BF16: torch.bfloat16,
}
HOST = torch.device("cpu")


def state_layout(memory: MemoryConfig) -> StateLayout:
    """How `memory` wants the state to be kept."""
    master = Master.WHOLE
    if memory.reuse_parameter_copy:
        master = Master.LOW_HALF
    elif memory.master_weights is KeptType.BF16:
        master = Master.NOTHING
    return StateLayout(
        moments=_TYPES[memory.optimizer_state],
        master=master,
        host=HOST if memory.offload_optimizer else None,
    )


def leave_masters_to_inner(config: OptimizerConfig) -> None:
    """Switch on the mode in which megatron-core keeps no masters of its own.

    Setting it in the constructor asks for Transformer Engine, whose optimizer it was made for.
    """
    config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True  # pyright: ignore[reportAttributeAccessIssue]  # set after init


def keep_state(distributed: DistributedOptimizer, layout: StateLayout) -> None:
    """Put `KeptAdam` in the place of torch's AdamW, before anything has been trained."""
    holder = cast("Any", distributed)
    holder.optimizer = KeptAdam(holder.optimizer.param_groups, layout)
    distributed._get_main_param_and_optimizer_states = MethodType(_values, distributed)
    distributed._set_main_param_and_optimizer_states = MethodType(_set_values, distributed)


def _values(self: DistributedOptimizer, model_param: torch.Tensor) -> dict[str, torch.Tensor]:
    inner, parameter = _kept(self, model_param)
    return inner.values(parameter)


def _set_values(
    self: DistributedOptimizer, model_param: torch.Tensor, tensors: Mapping[str, torch.Tensor]
) -> None:
    inner, parameter = _kept(self, model_param)
    inner.set_values(parameter, tensors)


def _kept(self: DistributedOptimizer, model_param: torch.Tensor) -> tuple[KeptAdam, torch.Tensor]:
    group, order = self.model_param_group_index_map[model_param]
    inner = cast("KeptAdam", self.optimizer)
    return inner, inner.param_groups[group]["params"][order]
