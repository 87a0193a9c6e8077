"""Whose random numbers a part of the model draws."""

from contextlib import AbstractContextManager, nullcontext

from megatron.core.tensor_parallel import get_cuda_rng_tracker


def own_draws(*, is_on: bool) -> AbstractContextManager[None]:
    """Within it each tensor-parallel rank draws by itself; outside all draw the same."""
    if not is_on:
        return nullcontext()
    tracker = get_cuda_rng_tracker()
    assert tracker is not None  # made with the process groups
    return tracker.fork()
