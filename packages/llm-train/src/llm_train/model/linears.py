"""Parallel linears that each decide on their own bias."""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig


class ColumnLinear(ColumnParallelLinear):
    """Rows cut over the tensor-parallel ranks, with a bias of its own choice."""

    def __init__(self, *args: Any, has_bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": has_bias})


class RowLinear(RowParallelLinear):
    """Columns cut over the tensor-parallel ranks, with a bias of its own choice."""

    def __init__(self, *args: Any, has_bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": has_bias})


def output_linear(config: TransformerConfig, in_size: int, *, has_bias: bool) -> RowLinear:
    """The last linear of a block, from cut heads to the hidden size; gives its bias unadded."""
    return RowLinear(
        in_size,
        config.hidden_size,
        config=config,
        init_method=config.output_layer_init_method,
        has_bias=has_bias,
        input_is_parallel=True,
        skip_bias_add=True,
    )


class ReplicatedLinear(torch.nn.Linear):
    """A linear that every rank holds; gradients of slices of the sequence are summed over ranks."""

    def __init__(
        self, config: TransformerConfig, in_size: int, out_size: int, *, has_bias: bool = False
    ) -> None:
        super().__init__(
            in_size,
            out_size,
            bias=has_bias,
            device=torch.cuda.current_device(),
            dtype=config.params_dtype,
        )
        if has_bias:
            # As megatron-core's own biases begin; torch's would be random, unlike on other layouts.
            torch.nn.init.zeros_(self.bias)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
