"""Times of a backend, forward and with its backward, in microseconds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llm_kernels_npu.case import Case
from llm_kernels_npu.parity import arguments, as_tuple, make
from llm_kernels_npu.select import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Median times of one backend on one case."""

    operator: str
    backend: str
    case: str
    device: str
    dtype: str
    forward_us: float
    forward_backward_us: float | None
    """None for an operator without gradients."""
    repeats: int


def measure(
    name: str, backend: str, case: Case, *, device: str, dtype: torch.dtype, seconds: float
) -> Timing:
    """Median over as many runs as fit in `seconds`, at least five, after two to warm up."""
    run = load(name, backend)[0]
    tensors = make(case, device=device, dtype=dtype)
    args, options = arguments(case, tensors)

    def forward() -> None:
        with torch.no_grad():
            run(*args, **options)

    def forward_backward() -> None:
        outputs = [out for out in as_tuple(run(*args, **options)) if out.requires_grad]
        upstream = [torch.ones_like(out) for out in outputs]
        torch.autograd.grad(outputs, tensors[: case.differentiable], upstream)

    forward_times = _times(forward, device=device, seconds=seconds / 2)
    both_us = None
    if case.differentiable:
        both_times = _times(forward_backward, device=device, seconds=seconds / 2)
        both_us = round(statistics.median(both_times) * 1e6, 2)
    return Timing(
        operator=name,
        backend=backend,
        case=case.name,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        forward_us=round(statistics.median(forward_times) * 1e6, 2),
        forward_backward_us=both_us,
        repeats=len(forward_times),
    )


def _times(run: Callable[[], None], *, device: str, seconds: float) -> list[float]:
    synchronize = _synchronize(device)
    for _ in range(2):
        run()
    synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return times


def _synchronize(device: str) -> Callable[[], None]:
    if device == "cpu":
        return lambda: None
    return torch.get_device_module(device).synchronize
