"""Rules of steps, schedules and evaluations."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.batches import BatchSizes
from llm_train.check.layout import layout, world
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
    wsd_steps, decay_steps = optimizer.wsd_decay_steps, optimizer.decay_steps
    if wsd_steps is not None and decay_steps is not None:
        left = decay_steps - optimizer.warmup_steps
        if wsd_steps > left:
            yield (
                f"optimizer: wsd_decay_steps({wsd_steps}) > decay_steps({decay_steps}) - "
                f"warmup_steps({optimizer.warmup_steps}) = {left}"
            )
    has_valid = config.data.has_valid or config.data.valid_fraction > 0
    if config.train.eval_every is not None and not has_valid:
        yield (
            f"train.eval_every({config.train.eval_every}) needs data: set data.valid or "
            "data.valid_fraction"
        )


def ramp(config: RunConfig, world_size: int) -> Iterator[str]:
    """The batch grows in whole steps, each of whole micro-batches."""
    train = config.train
    if train.batch_ramp is None or any(world(config, world_size)):
        return
    start, increment = train.batch_ramp.start, train.batch_ramp.increment
    growth = train.global_batch_size - start
    if growth <= 0 or growth % increment:
        yield (
            f"train.batch_ramp: global_batch_size({train.global_batch_size}) - start({start}) = "
            f"{growth} is not a multiple of increment({increment}) above 0"
        )
        return
    dp, pp = layout(config, world_size).dp, config.parallel.pp
    part = train.micro_batch_size * dp
    whole = part * pp if config.parallel.vpp is not None else part
    bad = [size for size in BatchSizes.of(train).sizes() if size % whole]
    if bad:
        stages = f" * pp({pp})" if config.parallel.vpp is not None else ""
        yield (
            f"train.batch_ramp: a batch of {bad[0]} sequences is not a multiple of "
            f"micro_batch_size({train.micro_batch_size}) * dp({dp}){stages} = {whole}"
        )


def overlap(config: RunConfig) -> Iterator[str]:
    """What is overlapped goes together."""
    if not config.parallel.overlap_param_gather:
        return
    if not config.optimizer.distributed:
        yield "parallel.overlap_param_gather needs optimizer.distributed=true"
    if not config.parallel.overlap_grad_reduce:
        yield "parallel.overlap_param_gather needs parallel.overlap_grad_reduce=true"
