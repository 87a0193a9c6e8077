"""What a benchmark found: the speed of a run's steps, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from llm_train.metrics import StepMetrics

_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A run's steps after their warm-up. `mfu` is None where the device's peak is not known."""

    device: str
    devices: int
    steps: int
    tokens_per_step: int
    step_time_median_s: float
    step_time_min_s: float
    step_time_max_s: float
    tokens_per_second: float
    tokens_per_second_per_device: float
    model_flops_per_second_per_device: float
    mfu: float | None
    peak_memory_bytes: int


def speed(
    steps: Sequence[StepMetrics],
    *,
    warmup: int,
    tokens_per_step: int,
    token_flops: float,
    device: str,
    devices: int,
    peak_flops: float | None,
) -> Speed:
    """Sum up all steps but the first `warmup`; every rate is of the median step."""
    times = [one.step_time_s for one in steps[warmup:]]
    median = statistics.median(times)
    tokens = tokens_per_step / median
    flops = tokens * token_flops / devices
    return Speed(
        device=device,
        devices=devices,
        steps=len(times),
        tokens_per_step=tokens_per_step,
        step_time_median_s=median,
        step_time_min_s=min(times),
        step_time_max_s=max(times),
        tokens_per_second=tokens,
        tokens_per_second_per_device=tokens / devices,
        model_flops_per_second_per_device=flops,
        mfu=None if peak_flops is None else flops / peak_flops,
        peak_memory_bytes=max(one.memory_bytes or 0 for one in steps),
    )


def table(found: Speed) -> str:
    """The same in lines for people."""
    mfu = "unknown: no peak is known of this device and precision"
    if found.mfu is not None:
        mfu = f"{100 * found.mfu:.1f} %"
    rows = {
        "device": f"{found.devices} x {found.device}",
        "steps": f"{found.steps} of {found.tokens_per_step:,} tokens",
        "step time": f"{found.step_time_median_s:.4f} s median, {found.step_time_min_s:.4f} to "
        f"{found.step_time_max_s:.4f} s",
        "tokens/s": f"{found.tokens_per_second:,.0f}, "
        f"{found.tokens_per_second_per_device:,.0f} a device",
        "model": f"{found.model_flops_per_second_per_device / 1e12:.4g} TFLOP/s a device",
        "mfu": mfu,
        "peak memory": f"{found.peak_memory_bytes / _GIB:.2f} GiB on the largest rank",
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())
