"""Microseconds that llm-kernels-npu's choice of backend adds to a call of each operator.

Tensors are the small ones of each operator's first parity case. The bare backend function and the
bound operator are called in turn, in one thread, by CPU time; the figure is the median of the
differences of neighbours. The goal is 3 µs.

`swept` is the binding alone: the same limits around an empty function, timed each time just after
the operator itself has run, less the empty function; lower quartiles. With `--against` another
version's limits take turns with these, on a machine whose other work drowns what whole calls show.

    .venv/bin/python benchmarks/kernel_dispatch.py --rounds 9
"""

import argparse
import inspect
import random
import runpy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.checked import checked
from llm_kernels_npu.parity import arguments, make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import bind, choose, load

GOAL_US = 3.0
CALLS = 300

Limit = Callable[..., str | None]


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


def swept(
    run: Callable[..., object], limits: Sequence[Limit], args: tuple, options: dict
) -> list[float]:
    """Microseconds of the wrapper with each of `limits`, `run` having run just before."""

    def empty(*_args: object, **_options: object) -> None:
        pass

    def refuse(reason: str, *_call: object) -> NoReturn:
        raise ValueError(reason)

    empty.__signature__ = inspect.signature(run)  # pyright: ignore[reportFunctionMemberAccess]
    calls = [empty, *(checked(empty, limit, refuse) for limit in limits)]
    times: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    shuffle = random.Random(0).shuffle
    with torch.no_grad():
        for _ in range(CALLS):
            shuffle(order)
            for which in order:
                run(*args, **options)
                times[which].append(microseconds(calls[which], args, options))
    quarter = [statistics.quantiles(one, n=4)[0] for one in times]
    return [one - quarter[0] for one in quarter[1:]]


def main() -> None:
    """Measure every operator and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--op", action="append", choices=list(OPERATORS), help="only this one")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="another llm_kernels_npu, for its limits too"
    )
    parsed = parser.parse_args()
    rounds: int = parsed.rounds
    torch.set_num_threads(1)
    print(
        f"| operator | bare µs | bound µs | added µs, median of {rounds} | goal {GOAL_US:g} µs "
        "| swept µs |"
    )
    print("|---|---|---|---|---|---|")
    for name in parsed.op or OPERATORS:
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
        limits = [load(name, choice.backend)[1]]
        if parsed.against is not None:
            other = runpy.run_path(str(parsed.against / "ops" / name / "limits.py"))
            limits.append(other["LIMITS"][choice.backend])
        rows = [swept(run, limits, args, options) for _ in range(rounds)]
        alone = " / ".join(f"{statistics.median(one):.2f}" for one in zip(*rows, strict=True))
        print(f"| {name} | {bare:.2f} | {whole:.2f} | {added:.2f} | {met} | {alone} |")


if __name__ == "__main__":
    main()
