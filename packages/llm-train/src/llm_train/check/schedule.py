"""Rules of steps, schedules and evaluations."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.config import RunConfig


def schedule(config: RunConfig) -> Iterator[str]:
    """What happens when is in order."""
    optimizer, steps = config.optimizer, config.train.max_steps
    if optimizer.warmup_steps > steps:
        yield f"optimizer: warmup_steps({optimizer.warmup_steps}) > train.max_steps({steps})"
    elif optimizer.decay_steps is not None and optimizer.warmup_steps >= optimizer.decay_steps:
        yield (
            f"optimizer: warmup_steps({optimizer.warmup_steps}) >= "
            f"decay_steps({optimizer.decay_steps}): nothing is left to decay over"
        )
    has_valid = config.data.has_valid or config.data.valid_fraction > 0
    if config.train.eval_every is not None and not has_valid:
        yield (
            f"train.eval_every({config.train.eval_every}) needs data: set data.valid or "
            "data.valid_fraction"
        )


def overlap(config: RunConfig) -> Iterator[str]:
    """What is overlapped goes together."""
    if not config.parallel.overlap_param_gather:
        return
    if not config.optimizer.distributed:
        yield "parallel.overlap_param_gather needs optimizer.distributed=true"
    if not config.parallel.overlap_grad_reduce:
        yield "parallel.overlap_param_gather needs parallel.overlap_grad_reduce=true"
