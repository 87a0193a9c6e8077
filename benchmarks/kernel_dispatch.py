"""Microseconds that llm-kernels-npu's choice of backend adds to a call of each operator.

Tensors are the small ones of each operator's first parity case. It runs the bare backend function
and the bound operator in turn and prints medians; the goal is 3 µs.

    .venv/bin/python benchmarks/kernel_dispatch.py --rounds 9
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.parity import arguments, make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import bind, choose, load

GOAL_US = 3.0
CALLS = 300


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
    for name in OPERATORS:
        case = check_cases(name)[0]
        args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
        choice = choose(name, device="cpu")
        run, bound = load(name, choice.backend)[0], bind(choice)
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
