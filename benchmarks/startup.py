"""Seconds from a command to its help page, for every package, and Python's own start beside it.

Each command runs `--rounds` times in turn with the others. It prints medians and the time over a
bare `python -c pass`; DESIGN's goal is 0.5 s.

    .venv/bin/python benchmarks/startup.py --rounds 7
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
GOAL_S = 0.5
PACKAGES = ("llm-data", "llm-ckpt", "llm-train", "llm-kernels-npu", "llm-eval", "llm-infer")


def seconds(command: list[str]) -> float:
    """Wall time of one run of a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure all in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    commands = {"python -c pass": [sys.executable, "-c", "pass"]}
    commands |= {f"{name} --help": [str(BIN / name), "--help"] for name in PACKAGES}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds(command))
    bare = statistics.median(times["python -c pass"])
    print(f"| command | median s of {rounds} | slowest | over bare Python | goal {GOAL_S} s |")
    print("|---|---|---|---|---|")
    for name, found in times.items():
        median = statistics.median(found)
        met = "met" if median <= GOAL_S else "missed"
        print(f"| {name} | {median:.2f} | {max(found):.2f} | {median - bare:.2f} | {met} |")


if __name__ == "__main__":
    main()
