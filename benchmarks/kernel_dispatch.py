"""Microseconds that llm-kernels-npu's choice of backend adds to a call of each operator.

Tensors are the small ones of each operator's first parity case. The bare backend function and the
bound operator are called in turn, in one thread, by CPU time; the figure is the median of the
differences of neighbours. The goal is 3 µs.

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
    """CPU time of one call."""
    start = time.process_time_ns()
    call(*args, **options)
    return (time.process_time_ns() - start) / 1000


def pairs(
    bare: Callable[..., object], bound: Callable[..., object], args: tuple, options: dict
) -> list[tuple[float, float]]:
    """Times of the two, called in turn; which is first changes from pair to pair."""
    times = []
    with torch.no_grad():
        for number in range(CALLS):
            if number % 2:
                first = microseconds(bare, args, options)
                times.append((first, microseconds(bound, args, options)))
            else:
                second = microseconds(bound, args, options)
                times.append((microseconds(bare, args, options), second))
    return times


def main() -> None:
    """Measure every operator and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"| operator | bare µs | bound µs | added µs, median of {rounds} | goal {GOAL_US:g} µs |")
    print("|---|---|---|---|---|")
    for name in OPERATORS:
        case = check_cases(name)[0]
        args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
        choice = choose(name, device="cpu")
        run, bound = load(name, choice.backend)[0], bind(choice)
        times = [pairs(run, bound, args, options) for _ in range(rounds)]
        bare = statistics.median(first for one in times for first, _ in one)
        whole = statistics.median(second for one in times for _, second in one)
        added = statistics.median(
            statistics.median(second - first for first, second in one) for one in times
        )
        met = "met" if added <= GOAL_US else "missed"
        print(f"| {name} | {bare:.2f} | {whole:.2f} | {added:.2f} | {met} |")


if __name__ == "__main__":
    main()
