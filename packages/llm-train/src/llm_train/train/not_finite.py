"""A loss or gradient that is NaN or infinite: kept off the weights, and traced to its samples."""

import math
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from llm_train import batches
from llm_train.metrics import StepMetrics
from llm_train.train.data import Samples
from llm_train.train.samples import SampleRows
from llm_train.train.step import StepResult

_SHOWN = 16


class NotFiniteError(ArithmeticError):
    """A step whose loss or gradient norm is NaN or infinite."""


class _NormError(ArithmeticError):
    def __init__(self, norm: float) -> None:
        super().__init__(norm)
        self.norm = norm


def guard_updates(optimizer: Any) -> None:
    """Let `optimizer.step()` change nothing and say so when the gradient norm is not finite.

    megatron-core looks for that in fp16 alone; elsewhere clipping by such a norm makes every
    weight NaN.
    """
    get_norm, step = optimizer.get_grad_norm, optimizer.step

    def finite_norm() -> float:
        norm = get_norm()
        if not math.isfinite(norm):
            raise _NormError(float(norm))
        return norm

    def guarded_step() -> tuple[bool, float | None, int | None]:
        try:
            return step()
        except _NormError as error:
            return False, error.norm, None

    optimizer.get_grad_norm = finite_norm
    optimizer.step = guarded_step


def describe(
    metrics: StepMetrics,
    batch: batches.Batch,
    result: StepResult,
    *,
    dataset: Samples,
    micro_batch_size: int,
) -> str:
    """Say what happened in which step, on which ranks, in which samples; every rank calls it.

    A loss is traced to the micro-batches that it came from, a gradient only to the step's batch.
    """
    numbers = {
        "loss": result.loss,
        "mtp_loss": result.mtp_loss,
        "gradient norm": result.grad_norm,
    }
    name, value = next(
        (name, value)
        for name, value in numbers.items()
        if value is not None and not math.isfinite(value)
    )
    dp_rank = parallel_state.get_data_parallel_rank()
    stride = micro_batch_size * parallel_state.get_data_parallel_world_size()
    mine = [
        batch.first + number * stride + dp_rank * micro_batch_size + index
        for number in result.not_finite
        for index in range(micro_batch_size)
    ]
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    found = {rank: samples for rank, samples in enumerate(everywhere) if samples}
    samples = sorted({index for part in found.values() for index in part})
    ranks = f" on rank {', '.join(map(str, found))}" if found else ""
    if not samples:
        samples = list(range(batch.first, batch.first + batch.size))
    return f"step {metrics.step}: the {name} is {value}{ranks}, in {_named(samples, dataset)}"


def _named(samples: list[int], dataset: Samples) -> str:
    """The samples by their places in the global order, and the documents they begin in."""
    shown = ", ".join(_with_origin(index, dataset) for index in samples[:_SHOWN])
    more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
    return f"sample{'s' if len(samples) > 1 else ''} {shown}{more}"


def _with_origin(index: int, dataset: Any) -> str:
    """`index (document D of PREFIX)` for megatron-core's datasets, `index` for any other.

    A dataset of samples says so itself.
    """
    if isinstance(dataset, SampleRows):
        return f"{index} ({dataset.origin(index)})"
    dataset[index]  # its indices are read when a sample is
    inner, place = dataset, index
    if hasattr(inner, "dataset_sample_index"):
        inner, place = (
            inner.datasets[inner.dataset_index[index]],
            inner.dataset_sample_index[index],
        )
    if not all(hasattr(inner, name) for name in ("shuffle_index", "sample_index", "dataset_path")):
        return str(index)
    first = inner.sample_index[inner.shuffle_index[place % len(inner.shuffle_index)]][0]
    return f"{index} (document {inner.document_index[first]} of {inner.dataset_path})"
