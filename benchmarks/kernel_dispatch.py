"""Microseconds that llm-kernels-npu's choice of backend adds to a call of each operator.

Tensors are as small as they can be, so that the time is the call's own. It runs the bare backend
function and the bound operator in turn and prints medians; the goal is 3 µs.

    .venv/bin/python benchmarks/kernel_dispatch.py --rounds 9
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from llm_kernels_npu.select import Choice, bind, load

GOAL_US = 3.0
CALLS = 300


def smallest_calls() -> dict[str, tuple[tuple[torch.Tensor, ...], dict[str, object]]]:
    """Arguments and options of one tiny call for each operator."""
    q = torch.ones(1, 1, 1, 2)
    rows, targets = torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)
    return {
        "rms_norm": ((rows, torch.ones(2)), {"eps": 1e-6}),
        "swiglu": ((rows,), {}),
        "cross_entropy": ((rows, targets), {}),
        "linear_cross_entropy": ((rows, torch.ones(3, 2), targets), {}),
        "rope": ((q, q, q), {}),
        "attention": ((q, q, q), {"causal": True}),
    }


def microseconds(call: Callable[..., object], args: tuple, options: dict) -> float:
    """Median time of a call."""
    times = []
    with torch.no_grad():
        for _ in range(CALLS):
            start = time.perf_counter_ns()
            call(*args, **options)
            times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def main() -> None:
    """Measure every operator and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"| operator | bare µs | bound µs | added, median of {rounds} | goal {GOAL_US} µs |")
    print("|---|---|---|---|---|")
    for name, (args, options) in smallest_calls().items():
        run, bound = load(name, "torch")[0], bind(Choice(operator=name, backend="torch"))
        pairs = [
            (microseconds(run, args, options), microseconds(bound, args, options))
            for _ in range(rounds)
        ]
        bare = statistics.median(first for first, _ in pairs)
        whole = statistics.median(second for _, second in pairs)
        added = statistics.median(second - first for first, second in pairs)
        met = "met" if added <= GOAL_US else "missed"
        print(f"| {name} | {bare:.2f} | {whole:.2f} | {added:.2f} | {met} |")


if __name__ == "__main__":
    main()
