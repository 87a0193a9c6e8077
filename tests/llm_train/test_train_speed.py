"""What `llm-train bench` makes of the steps it timed, by hand."""

from llm_train.metrics import StepMetrics
from llm_train.speed import speed, table


def steps(times):
    return [
        StepMetrics(
            step=number,
            consumed_samples=0,
            consumed_tokens=0,
            loss=1.0,
            lr=0.0,
            grad_norm=None,
            tokens_per_second=0.0,
            step_time_s=seconds,
            memory_bytes=number << 30,
        )
        for number, seconds in enumerate(times, start=1)
    ]


def found(peak_flops):
    return speed(
        steps([9.0, 0.5, 0.25, 1.0]),
        warmup=1,
        tokens_per_step=1000,
        token_flops=3e9,
        device="NVIDIA H200",
        devices=2,
        peak_flops=peak_flops,
    )


def test_rates_are_of_the_median_step_after_the_warm_up():
    # 1000 tokens in 0.5 s on two devices: 1000 a second each, 3e12 operations.
    one = found(1e13)
    assert (one.steps, one.step_time_median_s) == (3, 0.5)
    assert (one.step_time_min_s, one.step_time_max_s) == (0.25, 1.0)
    assert (one.tokens_per_second, one.tokens_per_second_per_device) == (2000.0, 1000.0)
    assert (one.model_flops_per_second_per_device, one.mfu) == (3e12, 0.3)
    assert one.peak_memory_bytes == 4 << 30


def test_the_table_reads_like_this():
    assert table(found(1e13)).splitlines() == [
        "device       2 x NVIDIA H200",
        "steps        3 of 1,000 tokens",
        "step time    0.5000 s median, 0.2500 to 1.0000 s",
        "tokens/s     2,000, 1,000 a device",
        "model        3 TFLOP/s a device",
        "mfu          30.0 %",
        "peak memory  4.00 GiB on the largest rank",
    ]
    assert "mfu          unknown: no peak is known" in table(found(None))
