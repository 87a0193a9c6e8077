"""What the sandbox costs: a program in it, against the same program as a plain process.

    python benchmarks/eval_sandbox.py --programs 40

Bar: the median is at most 30 ms more. Both are taken in turn, so that a busy machine slows both.
"""

import argparse
import statistics
import subprocess
import sys
import time

from llm_eval.edge.sandbox.outside import Sandbox

PROGRAM = "import math\ndef f(x):\n    return math.sqrt(x)\nassert f(4) == 2\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=40)
    count = parser.parse_args().programs
    ours, plain = [], []
    with Sandbox() as sandbox:
        for _ in range(count):
            start = time.perf_counter()
            assert sandbox.run(PROGRAM).passed
            middle = time.perf_counter()
            subprocess.run([sys.executable, "-c", PROGRAM], check=True)
            end = time.perf_counter()
            ours.append(middle - start)
            plain.append(end - middle)
    medians = [1000 * statistics.median(times) for times in (ours, plain)]
    best = [1000 * min(times) for times in (ours, plain)]
    print("          sandbox     plain   difference")
    for name, (a, b) in (("median", medians), ("best", best)):
        print(f"{name:<8}{a:8.1f} ms {b:7.1f} ms {a - b:+9.1f} ms")


if __name__ == "__main__":
    main()
