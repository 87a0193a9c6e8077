"""One optimizer step and one evaluation, over megatron-core's forward-backward schedules."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from llm_train.model.context_parallel.zigzag import take
from llm_train.model.packed_rows import packed_rows
from llm_train.train.router_losses import RouterLosses, collect_router_losses

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What every rank knows after a step, and which of its own micro-batches had no finite loss."""

    loss: float
    grad_norm: float
    lr: float
    is_skipped: bool
    router: RouterLosses
    not_finite: tuple[int, ...] = ()

    @property
    def is_finite(self) -> bool:
        """Loss and gradient norm are numbers; a step of fp16 that overflowed has no norm."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """The pieces one step needs."""

    chunks: Sequence[DistributedDataParallel]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    micro_batches: int
    micro_batch_size: int
    seq_length: int
    is_packed: bool
    device: torch.device


def train_step(parts: Trainable, batches: Sequence[Iterator[Batch]]) -> StepResult:
    """Forward and backward over all micro-batches, reduce, clip, update, advance the schedule.

    A loss that is not finite updates nothing; the optimizer refuses such a gradient by itself.
    """
    for chunk in parts.chunks:
        chunk.zero_grad_buffer()
    parts.optimizer.zero_grad()
    reports = _forward_backward(parts, batches, is_forward_only=False)
    loss = _mean_loss(reports, parts.device)
    lr = float(parts.optimizer.param_groups[0]["lr"])
    is_updated, grad_norm = False, None
    if math.isfinite(loss):
        is_updated, grad_norm, _ = parts.optimizer.step()  # pyright: ignore[reportGeneralTypeIssues]  # unannotated
    if is_updated:
        parts.schedule.step(increment=1)
    return StepResult(
        loss=loss,
        grad_norm=float(grad_norm or 0.0),
        lr=lr,
        is_skipped=not is_updated,
        router=collect_router_losses(
            parts.chunks[0].config, micro_batches=parts.micro_batches, device=parts.device
        ),
        not_finite=() if math.isfinite(loss) else _not_finite(reports),
    )


@torch.no_grad()
def eval_loss(parts: Trainable, batches: Sequence[Iterator[Batch]], *, steps: int) -> float:
    """Mean loss a token over `steps` global batches."""
    for chunk in parts.chunks:
        chunk.eval()
    reports = [
        report
        for _ in range(steps)
        for report in _forward_backward(parts, batches, is_forward_only=True)
    ]
    for chunk in parts.chunks:
        chunk.train()
    return _mean_loss(reports, parts.device)


def _forward_backward(
    parts: Trainable, batches: Sequence[Iterator[Batch]], *, is_forward_only: bool
) -> list[dict[str, torch.Tensor]]:
    is_virtual = len(parts.chunks) > 1
    return get_forward_backward_func()(
        forward_step_func=partial(_forward, parts),
        data_iterator=list(batches) if is_virtual else batches[0],
        model=list(parts.chunks) if is_virtual else parts.chunks[0],
        num_microbatches=parts.micro_batches,
        seq_length=parts.seq_length,
        micro_batch_size=parts.micro_batch_size,
        forward_only=is_forward_only,
    )


def _forward(parts: Trainable, batches: Iterator[Batch], model: torch.nn.Module) -> Any:
    rows = next(batches)
    documents = packed_rows(rows["position_ids"]) if parts.is_packed else None
    rank = parallel_state.get_context_parallel_rank()
    size = parallel_state.get_context_parallel_world_size()
    batch = {
        key: take(value, rank=rank, size=size, dim=1).to(parts.device, non_blocking=True)
        for key, value in rows.items()
    }
    losses = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        packed_seq_params=documents,
    )
    return losses, partial(_sum_loss, batch["loss_mask"])


def _sum_loss(
    loss_mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over this rank's tokens that count, and their number.

    megatron-core adds both up over data and context parallel and divides at the very end.
    """
    total = (losses.float() * loss_mask).sum()
    tokens = loss_mask.sum()
    report = torch.stack([total.detach(), tokens])
    return total, tokens.to(torch.int), {"loss": report}


def _not_finite(reports: Sequence[dict[str, torch.Tensor]]) -> tuple[int, ...]:
    """Micro-batches of this rank whose loss is NaN or infinite."""
    return tuple(n for n, one in enumerate(reports) if not one["loss"].isfinite().all())


def _mean_loss(reports: Sequence[dict[str, torch.Tensor]], device: torch.device) -> float:
    """Loss a token over all ranks; only the last pipeline stage has reports, all learn it."""
    total = torch.zeros(2, device=device)
    for report in reports:
        total += report["loss"]
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(total, group=group)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.broadcast(
            total,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),  # pyright: ignore[reportArgumentType]  # one group
        )
    loss, tokens = total.tolist()
    return loss / max(tokens, 1.0)
