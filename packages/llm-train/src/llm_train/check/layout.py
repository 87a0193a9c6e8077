"""How a run falls onto its ranks, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_train.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a run falls onto its ranks."""

    world_size: int
    dp: int
    expert_dp: int
    micro_batches: int
    tokens_per_step: int


def layout(config: RunConfig, world_size: int) -> Layout:
    """Derive the sizes that the config leaves open; call it when `problems` finds none."""
    parallel, train = config.parallel, config.train
    dp = world_size // parallel.ranks_of_model
    return Layout(
        world_size=world_size,
        dp=dp,
        expert_dp=world_size // (parallel.etp * parallel.ep * parallel.pp),
        micro_batches=train.global_batch_size // (train.micro_batch_size * dp),
        tokens_per_step=train.global_batch_size * train.seq_length,
    )


def world(config: RunConfig, world_size: int) -> Iterator[str]:
    """The ranks divide."""
    tp, cp, pp = config.parallel.tp, config.parallel.cp, config.parallel.pp
    ranks = config.parallel.ranks_of_model
    if world_size % ranks:
        yield (
            f"parallel: tp({tp}) * cp({cp}) * pp({pp}) = {ranks} does not divide world size "
            f"{world_size}; wanted tp * cp * pp * dp = world size"
        )


def batch(config: RunConfig, world_size: int) -> Iterator[str]:
    """The batch divides."""
    train, model_ranks = config.train, config.parallel.ranks_of_model
    if world_size % model_ranks:
        return
    dp = world_size // model_ranks
    batch, micro = train.global_batch_size, train.micro_batch_size
    if batch % (micro * dp):
        yield (
            f"train: global_batch_size({batch}) is not a multiple of micro_batch_size({micro}) * "
            f"dp({dp}) = {micro * dp}"
        )
    elif config.parallel.vpp is not None and (batch // (micro * dp)) % config.parallel.pp:
        yield (
            f"parallel.vpp: {batch // (micro * dp)} micro-batches = global_batch_size({batch}) / "
            f"(micro_batch_size({micro}) * dp({dp})) are not a multiple of pp({config.parallel.pp})"
        )
