"""One adapter: B · A beside a linear, on the ranks that share it.

T tokens, I inputs, O outputs, R the rank. What is exchanged between tensor-parallel ranks has R
columns, never I or O.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding

from llm_train.model.draws import expert_draws, own_draws
from llm_train.model.grouped import PADDED_BMM, grouped_linear, products_for

# torch._grouped_mm wants rows of a multiple of 16 bytes.
_GROUPED_ALIGNMENT = 8


class Cut(StrEnum):
    """Which axis of a linear's weight [O, I] is shared out over tensor-parallel ranks."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"
    NONE = "none"


Scaling = float | tuple[float, ...]
"""What B · A is multiplied by, or each column of B where these are not all alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What an adapter is beside its tensors: all of a run have these alike, unless they begin as
    those of a PEFT folder with several ranks or alphas.
    """

    rank: int
    scaling: Scaling
    dropout: float
    is_dora: bool
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How a linear lies on its ranks."""

    cut: Cut
    group: dist.ProcessGroup
    is_sequence_parallel: bool


class Adapter(torch.nn.Module):
    """A [R, I] and B [O, R] of a linear, as much of them as this rank's part of the weight needs.

    DoRA's `magnitude` [O] is the length of every row of the adapted weight.
    """

    def __init__(self, weight: torch.Tensor, form: Form, place: Place) -> None:
        super().__init__()
        self.form, self.place = form, place
        outputs, inputs = weight.shape
        make = {"dtype": form.dtype, "device": weight.device}
        self.A = torch.nn.Parameter(torch.zeros(form.rank, inputs, **make))
        self.B = torch.nn.Parameter(torch.zeros(outputs, form.rank, **make))
        if form.is_dora:
            self.magnitude = torch.nn.Parameter(torch.zeros(outputs, **make))
        self._mark()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, …, I] as the linear sees it → what is added to its output [T, …, O]."""
        x = dropped(self, x, own_draws(is_on=self._is_cut_input))
        return F.linear(scaled(self._exchanged(F.linear(x, self.A)), self.form.scaling), self.B)

    def adapted(
        self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The linear's output with the adapter; `bias` is what `out` already has."""
        if not self.form.is_dora:
            return out + self(x)
        plain = out if bias is None else out - bias
        scale = self.magnitude / self.lengths(weight).to(self.magnitude.dtype)
        scaled = scale * (plain + self(x))
        return scaled if bias is None else scaled + bias

    @torch.no_grad()
    def lengths(self, weight: torch.Tensor) -> torch.Tensor:
        """[O] lengths of the rows of W + s · B A, fp32, without making that matrix.

        They are constants to the gradient, as DoRA's paper (section 4.3) and peft have it.
        """
        return self._root(_squares(weight, self.A, self.B, self.form.scaling))

    @torch.no_grad()
    def lengths_of_base(self, weight: torch.Tensor) -> torch.Tensor:
        """[O] lengths of the rows of W (or of some of them, if `weight` has no more), fp32."""
        return self._root(weight.float().square().sum(1))

    def _root(self, squares: torch.Tensor) -> torch.Tensor:
        """Of sums of squares over this rank's inputs, the roots of those over all."""
        if self.place.cut is Cut.INPUTS and self.place.group.size() > 1:
            dist.all_reduce(squares, group=self.place.group)
        return squares.sqrt()

    @property
    def _is_cut_input(self) -> bool:
        """Each tensor-parallel rank has tokens or inputs of its own."""
        return self.place.cut is Cut.INPUTS or self.place.is_sequence_parallel

    def _exchanged(self, h: torch.Tensor) -> torch.Tensor:
        """[T, …, R]: the same on all ranks, or each rank's slice of T, as B needs it."""
        place = self.place
        if place.cut is Cut.NONE or place.group.size() == 1:
            return h
        if place.cut is Cut.OUTPUTS:
            whole, slices = copy_to_tensor_model_parallel_region, _gathered
        else:
            whole, slices = reduce_from_tensor_model_parallel_region, _scattered
        exchange: Any = slices if place.is_sequence_parallel else whole
        return cast("torch.Tensor", exchange(h, group=place.group))

    def _mark(self) -> None:
        """Tell megatron-core which are cut, and whose gradients each rank has a part of."""
        marks = {Cut.OUTPUTS: "B", Cut.INPUTS: "A", Cut.NONE: ""}
        cut = {marks[self.place.cut], *(["magnitude"] if self.place.cut is Cut.OUTPUTS else [])}
        for name, parameter in self.named_parameters():
            parameter.tensor_model_parallel = name in cut  # pyright: ignore[reportAttributeAccessIssue]
            is_partial = self.place.is_sequence_parallel and name not in cut
            parameter.sequence_parallel = is_partial  # pyright: ignore[reportAttributeAccessIssue]


class EmbeddingAdapter(torch.nn.Module):
    """A [R, V], of which this rank has the columns of its tokens, and B [hidden, R].

    DoRA's `magnitude` [hidden] is the length of each feature over the whole vocabulary, as in peft.
    """

    def __init__(
        self, embedding: VocabParallelEmbedding, form: Form, place: Place, *, vocab_size: int
    ) -> None:
        """Rows from `vocab_size` on fill the table up and are no tokens."""
        super().__init__()
        self.form, self.place = form, place
        weight = embedding.weight
        make = {"dtype": form.dtype, "device": weight.device}
        self.A = torch.nn.Parameter(torch.zeros(form.rank, weight.shape[0], **make))
        self.B = torch.nn.Parameter(torch.zeros(weight.shape[1], form.rank, **make))
        self.first = embedding.vocab_start_index
        self._tokens = max(0, min(weight.shape[0], vocab_size - self.first))
        self.is_scattered = bool(embedding.reduce_scatter_embeddings)
        self.A.tensor_model_parallel = True  # pyright: ignore[reportAttributeAccessIssue]
        self.B.sequence_parallel = self.is_scattered  # pyright: ignore[reportAttributeAccessIssue]
        if form.is_dora:
            self.magnitude = torch.nn.Parameter(torch.zeros(weight.shape[1], **make))
            self.magnitude.sequence_parallel = self.is_scattered  # pyright: ignore[reportAttributeAccessIssue]

    def adapted(self, out: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The embeddings of ids with the adapter."""
        found = out + self(ids)
        if not self.form.is_dora:
            return found
        return found * (self.magnitude / self.lengths(weight).to(self.magnitude.dtype))

    @torch.no_grad()
    def lengths(self, weight: torch.Tensor) -> torch.Tensor:
        """[hidden] lengths of the columns of W [V, hidden] + s · (B A)^T, fp32; constants too."""
        rows, a = weight[: self._tokens], self.A[:, : self._tokens]
        squares = _squares(rows.t(), a, self.B, self.form.scaling)
        if self.place.group.size() > 1:
            dist.all_reduce(squares, group=self.place.group)
        return squares.sqrt()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, T] ids → what is added to their embeddings, in the order that the embedding has."""
        local = ids - self.first
        is_mine = (local >= 0) & (local < self.A.shape[1])
        found = F.embedding(torch.where(is_mine, local, 0), self.A.t())
        found = torch.where(is_mine[..., None], found, 0.0)
        if self.is_scattered:
            found = _scattered(found.transpose(0, 1).contiguous(), group=self.place.group)
        elif self.place.group.size() > 1:
            found = reduce_from_tensor_model_parallel_region(found, group=self.place.group)
        return F.linear(scaled(cast("torch.Tensor", found), self.form.scaling), self.B)


class ExpertsAdapter(torch.nn.Module):
    """A [E, R, I] and B [E, O, R] of one linear of each of a rank's experts.

    Over an expert's tensor-parallel ranks A (or B) is the same, each rank has a part of its
    gradient.
    """

    def __init__(self, weights: Sequence[torch.Tensor], form: Form, place: Place) -> None:
        super().__init__()
        self.form, self.place = form, place
        outputs, inputs = weights[0].shape
        make = {"dtype": form.dtype, "device": weights[0].device}
        self.A = torch.nn.Parameter(torch.zeros(len(weights), form.rank, inputs, **make))
        self.B = torch.nn.Parameter(torch.zeros(len(weights), outputs, form.rank, **make))
        cut = {Cut.OUTPUTS: self.B, Cut.INPUTS: self.A}[place.cut]
        is_whole = place.group.size() == 1
        for parameter in (self.A, self.B):
            parameter.allreduce = getattr(weights[0], "allreduce", True)  # pyright: ignore[reportAttributeAccessIssue]
            # Whole experts differ from one tensor-parallel rank to the next.
            parameter.tensor_model_parallel = is_whole or parameter is cut  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, tokens: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """[M, I] sorted by expert → [M, O], like the linear a part of the sum over its ranks."""
        a, b = self.A, self.B
        if self.place.group.size() > 1:
            if self.place.cut is Cut.OUTPUTS:
                a = copy_to_tensor_model_parallel_region(a, group=self.place.group)
            else:
                b = copy_to_tensor_model_parallel_region(b, group=self.place.group)
        products = products_for(tokens.dtype, tokens.device.type)
        if self.form.rank % _GROUPED_ALIGNMENT:
            products = PADDED_BMM
        is_shared = self.place.cut is Cut.OUTPUTS and self.place.group.size() > 1
        x = dropped(self, tokens, expert_draws() if is_shared else own_draws(is_on=True))
        h = grouped_linear(products, x, cast("torch.Tensor", a).unbind(), counts)
        return grouped_linear(
            products, scaled(h, self.form.scaling), cast("torch.Tensor", b).unbind(), counts
        )


def dropped(
    adapter: Adapter | ExpertsAdapter, x: torch.Tensor, draws: AbstractContextManager[None]
) -> torch.Tensor:
    """What an adapter in training sees of its input; `draws` by who has the same input."""
    share = adapter.form.dropout
    if share == 0.0 or not adapter.training:
        return x
    with draws:
        return F.dropout(x, share)


def _squares(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: Scaling
) -> torch.Tensor:
    """[O] squared lengths of the rows of W [O, I] + s · B A, fp32, without making that matrix."""
    w, a, b = weight.float(), a.float(), scaled(b.float(), scaling)
    squares = w.square().sum(1) + 2 * ((w @ a.t()) * b).sum(1)
    return squares + ((b @ (a @ a.t())) * b).sum(1)


def scaled(h: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """[…, R] multiplied by what B · A is, rounded once to its own dtype."""
    if not isinstance(scaling, tuple):
        return h * scaling
    return (h * _row(scaling, h.device)).to(h.dtype)


@cache
def _row(scaling: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(scaling, device=device)


def first_bound(inputs: int) -> float:
    """A begins uniform within it: kaiming_uniform_(a=√5) of peft and of the paper's code."""
    return 1.0 / math.sqrt(inputs)


def _gathered(h: torch.Tensor, *, group: dist.ProcessGroup) -> torch.Tensor:
    return cast("torch.Tensor", gather_from_sequence_parallel_region(h, group=group))


def _scattered(h: torch.Tensor, *, group: dist.ProcessGroup) -> torch.Tensor:
    return cast("torch.Tensor", reduce_scatter_to_sequence_parallel_region(h, group=group))
