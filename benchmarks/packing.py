"""Packing lengths into rows: llm-data against first-fit decreasing and a bisecting greedy.

First-fit decreasing is the textbook's, an item at a time with a tree over the rows. The greedy is
the kind MindSpeed-LLM uses: fill one row after another with the longest sample that still fits,
found by bisection, one slot of a row always left for padding. CPU seconds of one core, medians.

    .venv/bin/python benchmarks/packing.py --rounds 3
"""

import argparse
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from llm_data.packing import pack

CAPACITY = 4096
GOAL_S, GOAL_EFFICIENCY = 2.0, 0.995


def clipped_log_normal(median: float, sigma: float) -> Callable:
    """Lengths as chat and document collections have them."""
    return lambda rng, count: np.clip(
        rng.lognormal(np.log(median), sigma, count), 8, CAPACITY
    ).astype(np.int32)


def between(shortest: int, longest: int) -> Callable:
    """Lengths that are all as likely."""
    return lambda rng, count: rng.integers(shortest, longest + 1, count).astype(np.int32)


REALISTIC = {
    "instructions: log-normal, median 110, sigma 0.7": clipped_log_normal(110, 0.7),
    "chat: 500, 0.9": clipped_log_normal(500, 0.9),
    "chat of one length: 800, 0.2": clipped_log_normal(800, 0.2),
    "thoughts: 1500, 0.5": clipped_log_normal(1500, 0.5),
    "narrow thoughts: 1500, 0.35": clipped_log_normal(1500, 0.35),
    "long documents: 2000, 0.9": clipped_log_normal(2000, 0.9),
    "uniform, 1 to 4096": between(1, CAPACITY),
}
HARD = {
    "just over a half": between(CAPACITY // 2 + 1, CAPACITY // 2 + 200),
    "just over a third": between(CAPACITY // 3 + 1, CAPACITY // 3 + 200),
    "a quarter to a half": between(CAPACITY // 4, CAPACITY // 2),
    "a tenth to a row": between(CAPACITY // 10, CAPACITY),
    "long: log-normal, median 2200, sigma 0.35": clipped_log_normal(2200, 0.35),
    "narrow: 1800, 0.2": clipped_log_normal(1800, 0.2),
}


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> int:
    """Rows, by a tree in which a node knows the most room below it."""
    leaves = 1 << (len(lengths) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    rows = 0
    for length in np.sort(lengths)[::-1].tolist():
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        rows = max(rows, node - leaves + 1)
        left = room[node] - length
        while node:
            room[node] = left
            left = max(room[node], room[node ^ 1]) if node > 1 else 0
            node //= 2
    return rows


def bisecting_greedy(lengths: np.ndarray, capacity: int) -> int:
    """Rows, one filled after another."""
    left = np.sort(lengths).tolist()
    rows = 0
    while left:
        rows += 1
        room = capacity
        while at := bisect_right(left, room):
            room -= left.pop(at - 1)
    return rows


def least_rows(lengths: np.ndarray, capacity: int) -> int:
    """No packing has fewer rows: the best of three bounds.

    Martello and Toth's L2, and two families of dual feasible functions (Fekete and Schepers):
    sum f(length) bounds the rows from below if no row's f can exceed 1.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    sizes = np.arange(capacity + 1)
    number = np.cumsum(counts)
    tokens = np.cumsum(counts * sizes)
    half = capacity // 2
    bounds = []
    for short in range(half + 1):
        middle = number[capacity - short] - number[half]
        of_middle = tokens[capacity - short] - tokens[half]
        of_short = tokens[half] - (tokens[short - 1] if short else 0)
        surplus = of_short - (middle * capacity - of_middle)
        bounds.append(number[capacity] - number[half] + max(0, -(-surplus // capacity)))
    for k in range(1, 41):
        f = np.where(
            (k + 1) * sizes % capacity == 0, k * sizes, (k + 1) * sizes // capacity * capacity
        )
        bounds.append(-(-(counts @ f) // (capacity * k)))
    for step in range(1, half + 1):
        most = capacity // step
        f = np.select(
            [2 * sizes > capacity, 2 * sizes == capacity],
            [2 * (most - (capacity - sizes) // step), most],
            2 * (sizes // step),
        )
        bounds.append(-(-(counts @ f) // (2 * most)))
    return int(max(bounds))


def timed(run: Callable[[], int], rounds: int) -> tuple[int, float]:
    """The rows and the median CPU time."""
    times = []
    rows = 0
    for _ in range(rounds):
        start = time.process_time()
        rows = run()
        times.append(time.process_time() - start)
    return rows, statistics.median(times)


def main() -> None:
    """Measure every distribution and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--greedy-samples", type=int, default=100_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"rows of {CAPACITY}; goal {GOAL_S} s a million, {GOAL_EFFICIENCY:.1%} of the bound")
    print(
        "| lengths | samples | token bound | best bound | ours | of token bound | of best bound "
        "| ours s | first fit | its s | greedy, one slot lost | its s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for count in (options.samples, options.greedy_samples):
        for name, make in {**REALISTIC, **HARD}.items():
            lengths = make(rng, count)
            by_tokens = -(-int(lengths.sum(dtype=np.int64)) // CAPACITY)
            least = max(by_tokens, least_rows(lengths, CAPACITY))
            ours, ours_s = timed(lambda: len(pack(lengths, CAPACITY)), options.rounds)  # noqa: B023
            cells = [name, f"{count:,}", f"{by_tokens:,}", f"{least:,}", f"{ours:,}"]
            cells += [f"{by_tokens / ours:.2%}", f"{least / ours:.2%}", f"{ours_s:.2f}"]
            start = time.process_time()
            rows = first_fit_decreasing(lengths, CAPACITY)
            cells += [f"{by_tokens / rows:.2%}", f"{time.process_time() - start:.2f}"]
            if count <= options.greedy_samples:
                fitting = lengths[lengths < CAPACITY]
                start = time.process_time()
                rows = bisecting_greedy(fitting, CAPACITY - 1)
                used = int(fitting.sum(dtype=np.int64)) / CAPACITY / rows
                cells += [f"{used:.2%}", f"{time.process_time() - start:.2f}"]
            else:
                cells += ["", ""]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
