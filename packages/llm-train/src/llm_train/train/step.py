"""One optimizer step and one evaluation, over megatron-core's forward-backward schedules."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from llm_train.config import LossMean
from llm_train.model.context_parallel.zigzag import take
from llm_train.model.learned import LearnedTokens
from llm_train.model.mtp import Ahead
from llm_train.model.packed_rows import packed_rows, sequence_tokens
from llm_train.train.ahead import Batch, batches_ahead
from llm_train.train.fsdp import ShardedModel
from llm_train.train.indexer_loss import collect_indexer_loss
from llm_train.train.optimizer import main_lr
from llm_train.train.router_losses import RouterLosses, collect_router_losses


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What every rank knows after a step, and which of its own micro-batches had no finite loss."""

    loss: float
    mtp_loss: float | None
    indexer_loss: float | None
    grad_norm: float
    lr: float
    is_skipped: bool
    router: RouterLosses
    not_finite: tuple[int, ...] = ()

    @property
    def is_finite(self) -> bool:
        """Losses and gradient norm are numbers; a step of fp16 that overflowed has no norm."""
        losses = (self.loss, 0.0 if self.mtp_loss is None else self.mtp_loss)
        return all(map(math.isfinite, (*losses, self.grad_norm)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """The pieces one step needs; `indexers` are those of the whole model that learn.

    `turns_by_length`: rotary positions ask for the length of each sequence.
    """

    chunks: Sequence[DistributedDataParallel] | Sequence[ShardedModel]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    micro_batches: int
    is_packed: bool
    turns_by_length: bool
    loss_mean: LossMean
    mtp_layers: int
    indexers: int
    mtp_loss_scale: float
    device: torch.device


def train_step(parts: Trainable, batches: Sequence[Iterator[Batch]]) -> StepResult:
    """Forward and backward over all micro-batches, reduce, clip, update, advance the schedule.

    A loss that is not finite updates nothing; the optimizer refuses such a gradient by itself.
    """
    for chunk in parts.chunks:
        chunk.zero_grad_buffer()
    parts.optimizer.zero_grad()
    reports = _forward_backward(parts, batches, is_forward_only=False)
    losses = _mean_losses(reports, 1 + parts.mtp_layers, parts.device)
    is_finite = all(map(math.isfinite, losses))
    lr = main_lr(parts.optimizer)
    is_updated, grad_norm = False, None
    if is_finite:
        is_updated, grad_norm, _ = parts.optimizer.step()  # pyright: ignore[reportGeneralTypeIssues]  # unannotated
    if is_updated:
        parts.schedule.step(increment=1)
    loss, *predicted = losses
    return StepResult(
        loss=loss,
        mtp_loss=fmean(predicted) if predicted else None,
        indexer_loss=collect_indexer_loss(
            parts.chunks,
            indexers=parts.indexers,
            micro_batches=parts.micro_batches,
            device=parts.device,
        ),
        grad_norm=float(grad_norm or 0.0),
        lr=lr,
        is_skipped=not is_updated,
        router=collect_router_losses(
            parts.chunks[0].config, micro_batches=parts.micro_batches, device=parts.device
        ),
        not_finite=() if is_finite else _not_finite(reports),
    )


@torch.no_grad()
def eval_loss(parts: Trainable, batches: Sequence[Iterator[Batch]], *, steps: int) -> float:
    """Mean loss a token over `steps` global batches, of the main model alone."""
    for chunk in parts.chunks:
        chunk.eval()
    reports = [
        report
        for _ in range(steps)
        for report in _forward_backward(parts, batches, is_forward_only=True)
    ]
    for chunk in parts.chunks:
        chunk.train()
    return _mean_losses(reports, 1, parts.device)[0]


def _forward_backward(
    parts: Trainable, batches: Sequence[Iterator[Batch]], *, is_forward_only: bool
) -> list[dict[str, torch.Tensor]]:
    is_virtual = len(parts.chunks) > 1
    # Stages must know the shape of what they exchange before the first of it is drawn.
    drawn = [[next(each) for _ in range(parts.micro_batches)] for each in batches]
    micro_batch_size, seq_length = drawn[0][0]["tokens"].shape
    return get_forward_backward_func()(
        forward_step_func=partial(_forward, parts, 0 if is_forward_only else parts.mtp_layers),
        data_iterator=[iter(each) for each in drawn] if is_virtual else iter(drawn[0]),
        model=list(parts.chunks) if is_virtual else parts.chunks[0],
        num_microbatches=parts.micro_batches,
        seq_length=seq_length,
        micro_batch_size=micro_batch_size,
        forward_only=is_forward_only,
    )


def _forward(
    parts: Trainable, depths: int, batches: Iterator[Batch], model: torch.nn.Module
) -> Any:
    rows = next(batches)
    documents = packed_rows(rows["position_ids"]) if parts.is_packed else None
    if parts.turns_by_length:
        lengths = sequence_tokens(rows["position_ids"], rows.get("padding"))
        rows = {**rows, "sequence_tokens": lengths}
    rank = parallel_state.get_context_parallel_rank()
    size = parallel_state.get_context_parallel_world_size()
    # Tokens look ahead in whole rows, before context parallel cuts them.
    shares = [
        {key: take(value, rank=rank, size=size, dim=1) for key, value in one.items()}
        for one in (rows, *batches_ahead(rows, depths))
    ]
    batch, *ahead = (
        {key: value.to(parts.device, non_blocking=True) for key, value in one.items()}
        for one in shares
    )
    learned, *learned_ahead = (_learned(parts, one["loss_mask"]) for one in shares)
    losses = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        learned=learned,
        packed_seq_params=documents,
        padding_mask=batch.get("padding"),
        sequence_tokens=batch.get("sequence_tokens"),
        ahead=[
            Ahead(
                tokens=one["tokens"],
                position_ids=one["position_ids"],
                labels=one["labels"],
                learned=learned,
            )
            for one, learned in zip(ahead, learned_ahead, strict=True)
        ],
    )
    masks = torch.stack([one["loss_mask"] for one in (batch, *ahead)])
    total = partial(_sum_loss, masks, parts.mtp_loss_scale)
    is_mean = parts.loss_mean is LossMean.MICRO_BATCHES and model.training
    return losses, partial(_mean_loss, total) if is_mean else total


def _learned(parts: Trainable, mask: torch.Tensor) -> LearnedTokens | None:
    """The tokens that a loss mask [B, T] on the host keeps, on the device."""
    is_sliced = parts.chunks[0].config.sequence_parallel
    ranks = parallel_state.get_tensor_model_parallel_world_size() if is_sliced else 1
    learned = LearnedTokens.of(mask, ranks=ranks)
    return None if learned is None else learned.to(parts.device)


def _sum_loss(
    masks: torch.Tensor, mtp_loss_scale: float, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over this rank's tokens that count, and their number in the main model.

    megatron-core adds both up over data and context parallel and divides at the very end. Losses
    and masks are [B, T], or [1 + layers, B, T] with prediction layers, whose mean is added.
    """
    kept = losses.float().view_as(masks) * masks
    sums, counts = kept.sum((1, 2)), masks.sum((1, 2))
    total = sums[0]
    if len(sums) > 1:
        # Divided by the tokens of the main model, as in DeepSeek-V3's formula (24).
        total = total + mtp_loss_scale * sums[1:].mean()
    report = torch.stack([sums.detach(), counts], dim=1)
    return total, counts[0].to(torch.int), {"losses": report}


def _mean_loss(
    total: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]],
    losses: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The same as the mean over a micro-batch's own tokens, which counts as one token.

    Over all its tokens: every rank of context parallel has a part of the mean, the first counts.
    """
    loss, count, reports = total(losses)
    whole = count.clone()
    dist.all_reduce(whole, group=parallel_state.get_context_parallel_group())
    is_first = parallel_state.get_context_parallel_rank() == 0
    means = torch.stack(
        [reports["losses"][:, 0] / whole, torch.full_like(reports["losses"][:, 1], is_first)], dim=1
    )
    return loss / whole, torch.full_like(count, is_first), {"losses": means}


def _not_finite(reports: Sequence[dict[str, torch.Tensor]]) -> tuple[int, ...]:
    """Micro-batches of this rank with a loss that is NaN or infinite."""
    return tuple(n for n, one in enumerate(reports) if not one["losses"].isfinite().all())


def _mean_losses(
    reports: Sequence[dict[str, torch.Tensor]], count: int, device: torch.device
) -> list[float]:
    """The `count` losses a token over all ranks, the main model's first.

    Only the last pipeline stage has reports; all learn it.
    """
    total = torch.zeros(count, 2, device=device)
    for report in reports:
        total += report["losses"]
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(total, group=group)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.broadcast(
            total,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),  # pyright: ignore[reportArgumentType]  # one group
        )
    return [loss / max(tokens, 1.0) for loss, tokens in total.tolist()]
