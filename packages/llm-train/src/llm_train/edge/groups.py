"""megatron-core's process groups for a layout, made and undone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llm_train.config import ParallelConfig


@contextmanager
def quiet_gloo() -> Iterator[None]:
    """Keep gloo's greeting for every group it makes off the run's standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def model_parallel(
    parallel: ParallelConfig, *, seed: int, timeout_s: float = 600.0
) -> Iterator[None]:
    """The groups of `parallel` and seeded generators, inside an open device session."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    with quiet_gloo():
        parallel_state.initialize_model_parallel(
            parallel.tp,
            parallel.pp,
            parallel.vpp,
            context_parallel_size=parallel.cp,
            expert_model_parallel_size=parallel.ep,
            expert_tensor_parallel_size=parallel.etp,
            distributed_timeout_minutes=timeout_s / 60,  # pyright: ignore[reportArgumentType]  # of a timedelta
        )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
