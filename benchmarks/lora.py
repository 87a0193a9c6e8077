"""Adapters: `lora.overlap` and `lora.fused_mlp` against plain ones, step by step in one run each.

Takes the conversations of benchmarks/sft.py, packed, and adapters on every linear; tokens a second
are medians over the steps of all rounds, kinds in turn. With `--tp 2` two ranks of one thread each
exchange over gloo: what they gain there is fewer passes over memory, not hidden exchanges, which
want a device that computes and sends at once.

    .venv/bin/python benchmarks/lora.py --model 50m
    .venv/bin/python benchmarks/lora.py --model 50m --tp 2
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from sft import ENVIRONMENT, MODELS, WARM_UP_STEPS, make_inputs, ours

KINDS = {
    "plain": (),
    "overlap": ("lora.overlap=true",),
    "fused": ("lora.fused_mlp=true",),
    "both": ("lora.overlap=true", "lora.fused_mlp=true"),
}
ADAPTERS = (
    'lora.target_modules=["linear_qkv","linear_proj","linear_fc1","linear_fc2"]',
    "lora.rank=16",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="quickstart")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    ENVIRONMENT["OMP_NUM_THREADS"] = str(max(1, 2 // options.tp))
    speeds, memory = {kind: [] for kind in KINDS}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, MODELS[options.model], count=16 * options.steps)
        for _ in range(options.rounds):
            for kind, words in KINDS.items():
                layout = (f"parallel.tp={options.tp}",)
                found, memory[kind] = ours(
                    folder, kind, "packed", options.steps, batch=1, words=ADAPTERS + layout + words
                )
                speeds[kind] += found[WARM_UP_STEPS:]
    print(f"{options.model}, tp {options.tp}, useful tokens/s, medians of {len(speeds['plain'])}")
    plain = statistics.median(speeds["plain"])
    for kind, found in speeds.items():
        median = statistics.median(found)
        print(
            f"  {kind:8} {median:8.0f}   ({min(found):.0f} to {max(found):.0f})   "
            f"{median / plain:.2f} of plain   {memory[kind] / 2**20:.0f} MiB a process"
        )


if __name__ == "__main__":
    main()
