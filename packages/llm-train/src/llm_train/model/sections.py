"""Parameters whose rows are of several kinds, each cut over the tensor-parallel ranks by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import (
    ReplicaId,
    ShardedStateDict,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from llm_train.model.linears import ColumnLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """Rows of each kind in the whole model, and the labels that checkpoint keys give them."""

    sizes: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Of all kinds."""
        return sum(self.sizes)


class CutModule(MegatronModule):
    """A module whose own parameters all lie cut over the tensor-parallel ranks, on axis 0."""

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Its modules' entries, and its own."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        own = dict(self.named_parameters(recurse=False))
        axes = dict.fromkeys(own, 0)
        return {**state, **make_sharded_tensors_for_checkpoint(own, prefix, axes, sharded_offsets)}


class SectionedLinear(ColumnLinear):
    """A linear whose output rows are `sections`; a rank has its share of each, in their order."""

    def __init__(
        self, config: TransformerConfig, in_size: int, sections: Sections, *, has_bias: bool
    ) -> None:
        super().__init__(
            in_size,
            sections.rows,
            config=config,
            init_method=config.init_method,
            has_bias=has_bias,
            gather_output=False,
            skip_bias_add=False,
        )
        self.sections = sections
        for parameter in self.parameters():
            _mark(parameter, sections)

    def split(self, out: torch.Tensor) -> Sequence[torch.Tensor]:
        """What each section of this rank gives, of out [..., rows / tp]."""
        return out.split(_share(self.sections, out.shape[-1]), dim=-1)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """A key a section for the weight, as megatron-core's mixers have; one key for the bias."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        _divide(state, f"{prefix}weight", self.sections, is_one_key=False)
        _divide(state, f"{prefix}bias", self.sections, is_one_key=True)
        return state


class CausalConv(CutModule):
    """SiLU of a short convolution over time, a kernel of its own for each of the sections' rows."""

    def __init__(
        self, config: TransformerConfig, sections: Sections, *, kernel: int, has_bias: bool
    ) -> None:
        super().__init__(config)
        self.sections = sections
        rows = sections.rows // config.tensor_model_parallel_size
        like = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
        self.weight = torch.nn.Parameter(torch.zeros(rows, 1, kernel, **like))
        _mark(self.weight, sections)
        # The variance that torch.nn.Conv1d starts with: uniform between ±1/√kernel.
        self.weight.init_std = (3 * kernel) ** -0.5  # pyright: ignore[reportAttributeAccessIssue]
        self.bias = torch.nn.Parameter(torch.zeros(rows, **like)) if has_bias else None
        if self.bias is not None:
            _mark(self.bias, sections)

    def forward(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """[T, B, rows / tp] → each section's [T, B, …]."""
        padded = F.pad(x.permute(1, 2, 0), (self.weight.shape[-1] - 1, 0))
        out = F.silu(F.conv1d(padded, self.weight, self.bias, groups=len(self.weight)))
        return out.permute(2, 0, 1).split(_share(self.sections, x.shape[-1]), dim=-1)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """A key a section."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in list(state):
            _divide(state, name, self.sections, is_one_key=False)
        return state


def cut_parameter(config: TransformerConfig, whole: torch.Tensor) -> torch.nn.Parameter:
    """This rank's share of a vector."""
    ranks, rank = config.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()
    mine = whole.chunk(ranks)[rank].clone()
    parameter = torch.nn.Parameter(mine.to(torch.cuda.current_device(), config.params_dtype))
    set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
    return parameter


def _mark(parameter: torch.nn.Parameter, sections: Sections) -> None:
    if not hasattr(parameter, "partition_stride"):
        set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
    parameter.sections = sections.sizes  # pyright: ignore[reportAttributeAccessIssue]


def _share(sections: Sections, rows: int) -> list[int]:
    """Rows of each section that a rank holds which has `rows` of them all."""
    ranks = sections.rows // rows
    return [size // ranks for size in sections.sizes]


def _divide(state: ShardedStateDict, name: str, sections: Sections, *, is_one_key: bool) -> None:
    """Save a cut parameter section by section, under keys of their own or at their places in one.

    Ranks' rows of all sections together do not lie side by side in the whole parameter.
    """
    if name not in state:
        return
    whole = cast("ShardedTensor", state[name])

    def build(
        key: str, data: torch.Tensor, replica_id: ReplicaId, _flattened_range: slice | None
    ) -> ShardedStateDict:
        named = replace(whole.without_data(), key=key, replica_id=replica_id, dtype=data.dtype)
        return _pieces(named, data.detach(), sections, is_one_key=is_one_key)

    def merge(pieces: Any) -> torch.Tensor:
        return torch.cat([pieces[label] for label in sections.labels])

    assert whole.data is not None
    state[name] = ShardedTensorFactory(whole.key, whole.data, build, merge, whole.replica_id)


def _pieces(
    whole: ShardedTensor, data: torch.Tensor, sections: Sections, *, is_one_key: bool
) -> ShardedStateDict:
    """By label."""
    axis, parts = whole.prepend_axis_num, data.split(_share(sections, len(data)))
    rank = whole.global_offset[axis] // len(data)
    starts = accumulate(sections.sizes, initial=0)
    pieces = dict[str, Any]()
    for label, size, start, part in zip(
        sections.labels, sections.sizes, starts, parts, strict=False
    ):
        place = rank * len(part)
        pieces[label] = replace(
            whole,
            key=whole.key if is_one_key else f"{whole.key}.{label}",
            data=part,
            local_shape=tuple(part.shape),
            global_shape=whole.global_shape
            if is_one_key
            else _with(whole.global_shape, axis, size),
            global_offset=_with(whole.global_offset, axis, start + place if is_one_key else place),
            # Pieces of several sizes are no grid.
            axis_fragmentations=None if is_one_key else whole.axis_fragmentations,
        )
    return pieces


def _with(numbers: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*numbers[:axis], value, *numbers[axis + 1 :])
