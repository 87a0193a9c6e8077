"""Norms that allow sequence parallel: over the hidden axis, a head, or all heads of all ranks."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from llm_train.model.kernels import kernels_of


def norm_parameter(config: TransformerConfig, fill: float, size: int) -> torch.nn.Parameter:
    """A vector every rank holds; its gradient is summed where ranks see slices of the sequence."""
    value = torch.full((size,), fill, dtype=config.params_dtype, device=torch.cuda.current_device())
    parameter = torch.nn.Parameter(value)
    parameter.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last axis; weight is stored minus one when zero-centered."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        self.kernels = kernels_of(config)
        self.weight = norm_parameter(config, 0.0 if self.zero_centered else 1.0, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernels is not None:
            offset = 1.0 if self.zero_centered else 0.0
            return self.kernels.rms_norm(x, self.weight, eps=self.eps, offset=offset)
        weight = self.weight + 1 if self.zero_centered else self.weight
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


class LayerNorm(torch.nn.Module):
    """(x − mean) / std * weight + bias over the last axis."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        self.kernels = kernels_of(config)
        self.weight = norm_parameter(config, 0.0 if self.zero_centered else 1.0, hidden_size)
        self.bias = norm_parameter(config, 0.0, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernels is not None:
            offset = 1.0 if self.zero_centered else 0.0
            return self.kernels.layer_norm(x, self.weight, self.bias, eps=self.eps, offset=offset)
        weight = self.weight + 1 if self.zero_centered else self.weight
        return F.layer_norm(x, (x.shape[-1],), weight, self.bias, self.eps)


class Norm:
    """The norm that `config.normalization` names: not every megatron-core builder says which."""

    def __new__(
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_ignored: Any
    ) -> torch.nn.Module:
        kind = RMSNorm if config.normalization == "RMSNorm" else LayerNorm
        return kind(config, hidden_size, eps)


class LateHeadNorm(RMSNorm):
    """A head norm for after the rotation: a call changes nothing, `late` normalises."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, **_ignored: Any
    ) -> None:
        super().__init__(config, hidden_size, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def late(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [..., D]."""
        out = super().forward(x)
        if out.requires_grad:
            # The weight's gradient is a sum, whose last bit depends on how its terms lie in memory:
            # so they do when attention is computed again.
            out.register_hook(torch.Tensor.contiguous)
        return out


class AllHeadsNorm(torch.nn.Module):
    """RMS norm over all heads together: x [T, B, H / tp, D], `heads` = H over all ranks."""

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        *,
        heads: int,
        **_ignored: Any,
    ) -> None:
        super().__init__()
        self.eps, self.size = eps, heads * hidden_size
        self.ranks = config.tensor_model_parallel_size
        value = torch.ones(
            self.size // self.ranks, dtype=config.params_dtype, device=torch.cuda.current_device()
        )
        self.weight = torch.nn.Parameter(value)
        self.weight.tensor_model_parallel = True  # pyright: ignore[reportAttributeAccessIssue]
        self.weight.partition_dim = 0  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(-2)
        squares = flat.float().square().sum(-1, keepdim=True)
        if self.ranks > 1:
            squares = cast("torch.Tensor", _SumOverRanks.apply(squares))
        root = torch.rsqrt(squares / self.size + self.eps)
        return (flat.float() * root).type_as(x).mul(self.weight).view_as(x)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """The weight lies cut over the tensor-parallel ranks."""
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {"weight": 0}, sharded_offsets)


class _SumOverRanks(torch.autograd.Function):
    """Sum over tensor-parallel ranks, forward and backward: every rank's part feeds every rank."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return _all_reduce(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return _all_reduce(grad_outputs[0])


def _all_reduce(x: torch.Tensor) -> torch.Tensor:
    total = x.clone()
    torch.distributed.all_reduce(total, group=parallel_state.get_tensor_model_parallel_group())
    return total


__all__ = ["AllHeadsNorm", "LateHeadNorm", "LayerNorm", "Norm", "RMSNorm", "norm_parameter"]
