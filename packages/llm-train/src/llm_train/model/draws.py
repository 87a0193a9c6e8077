"""Whose random numbers a part of the model draws."""

from contextlib import AbstractContextManager, nullcontext

from megatron.core.tensor_parallel import get_cuda_rng_tracker

SHARED_EXPERT_DRAWS = "expert-tensor-parallel-rng"
"""The tracker's name of what ranks draw alike that cut experts with each other."""


def own_draws(*, is_on: bool) -> AbstractContextManager[None]:
    """Within it each tensor-parallel rank draws by itself; outside all draw the same."""
    if not is_on:
        return nullcontext()
    tracker = get_cuda_rng_tracker()
    assert tracker is not None  # made with the process groups
    return tracker.fork()


def expert_draws() -> AbstractContextManager[None]:
    """Within it ranks that have parts of the same experts, and all their tokens, draw alike."""
    tracker = get_cuda_rng_tracker()
    assert tracker is not None  # made with the process groups
    return tracker.fork(SHARED_EXPERT_DRAWS)
