"""Recomputation as megatron-core's config says it, and the two ways our own modules do it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from megatron.core.tensor_parallel import CheckpointWithoutOutput
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.utils.checkpoint import checkpoint

from llm_train.config import RecomputeConfig, RecomputeKind, RecomputeModule

# megatron-core's names, which its own modules and ours look for in `recompute_modules`.
MODULES: Mapping[RecomputeModule, str] = MappingProxyType(
    {
        RecomputeModule.CORE_ATTENTION: "core_attn",
        RecomputeModule.LAYERNORM: "layernorm",
        RecomputeModule.ACTIVATION: "moe_act",
        RecomputeModule.MLP: "mlp",
        RecomputeModule.MOE: "moe",
        RecomputeModule.SHARED_EXPERTS: "shared_experts",
        RecomputeModule.MLA_UP_PROJ: "mla_up_proj",
    }
)


def recompute_fields(recompute: RecomputeConfig) -> dict[str, Any]:
    """TransformerConfig arguments; `set_modules` has to follow.

    megatron-core checks the names against its own modules, of which we use few.
    """
    if recompute.kind is RecomputeKind.NONE:
        return {}
    if recompute.kind is RecomputeKind.SELECTIVE:
        return {"recompute_granularity": "selective", "recompute_modules": []}
    return {
        "recompute_granularity": "full",
        "recompute_method": recompute.method.value,
        "recompute_num_layers": recompute.layers,
    }


def set_modules(config: TransformerConfig, recompute: RecomputeConfig) -> None:
    """Name the parts that are computed again."""
    config.recompute_modules = [MODULES[part] for part in recompute.parts]


def is_recomputed(config: TransformerConfig, part: RecomputeModule) -> bool:
    """Backward computes this part of a layer again."""
    is_selective = config.recompute_granularity == "selective"
    return is_selective and MODULES[part] in (config.recompute_modules or ())


def again(
    module: MegatronModule,
    part: RecomputeModule,
    function: Callable[..., torch.Tensor],
    *inputs: torch.Tensor,
) -> torch.Tensor:
    """`function(*inputs)`, which keeps its inputs alone where `part` is computed again.

    Nothing in it is random. Gradients go through the graph of the first time, in its layouts: sums
    over them have the same last bits.
    """
    if module.training and is_recomputed(module.config, part):
        found = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return cast("torch.Tensor", found)
    return function(*inputs)


class Recomputed:
    """Outputs of one function, dropped once they are used and computed again in backward.

    With `is_on` False the function is called as it is.
    """

    def __init__(self, *, is_on: bool) -> None:
        # None is how megatron-core is told that there is no fp8: False means that there is.
        no_fp8 = cast("bool", None)
        self._checkpoint = CheckpointWithoutOutput(fp8=no_fp8) if is_on else None

    def call(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """The outputs of `function`, still whole."""
        if self._checkpoint is None:
            return function(*inputs)
        return self._checkpoint.checkpoint(function, *inputs)

    def drop_before(self, later: torch.Tensor) -> None:
        """Free the outputs; when the gradient of `later` is known they are computed again.

        Everything that used them lies between them and `later`.
        """
        if self._checkpoint is not None and later.requires_grad:
            cast("Any", self._checkpoint).discard_output_and_register_recompute(later)
