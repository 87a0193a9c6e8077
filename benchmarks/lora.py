"""Adapters: `lora.overlap` and `lora.fused_mlp` against plain ones.

First the products alone: a linear with an adapter, forward and backward in one process on one
thread, plain and ours in turn, by CPU time. Then whole steps of llm-train over the packed
conversations of benchmarks/sft.py, with the memory of a process. With `--tp 2` two ranks exchange
over gloo: what they gain there is fewer passes over memory; hidden exchanges want a device that
computes and sends at once.

    .venv/bin/python benchmarks/lora.py --model 50m
    .venv/bin/python benchmarks/lora.py --model 50m --tp 2
    .venv/bin/python benchmarks/lora.py --products
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from sft import BIN, HERE, MODELS, ROW, WARM_UP_STEPS, make_inputs

KINDS = {
    "plain": (),
    "overlap": ("lora.overlap=true",),
    "fused": ("lora.fused_mlp=true",),
    "both": ("lora.overlap=true", "lora.fused_mlp=true"),
}
# tokens, inputs, outputs
SHAPES = ((512, 512, 1536), (2048, 512, 1536), (2048, 1024, 4096))
RANK = 16
CPU_CLOCK = HERE / "cpu_clock.py"


def products(rounds):
    """Median CPU seconds of the plain products and of ours, at each shape."""
    import torch
    import torch.nn.functional as F

    from llm_train.model.lora.exchange import Exchange
    from llm_train.model.lora.overlapped import _Overlapped
    from llm_train.model.lora.products import ColumnProducts

    torch.set_num_threads(1)
    group = SimpleNamespace(size=lambda: 1)
    alone = Exchange(SimpleNamespace(group=group, is_sequence_parallel=False))
    for tokens, inputs, outputs in SHAPES:
        x = torch.randn(tokens, inputs, requires_grad=True)
        weight = torch.randn(outputs, inputs)
        a = torch.randn(RANK, inputs, requires_grad=True)
        b = torch.randn(outputs, RANK, requires_grad=True)
        grad, ours = torch.randn(tokens, outputs), ColumnProducts(alone, 2.0)

        def plain(x=x, weight=weight, a=a, b=b):
            return F.linear(x, weight) + F.linear(F.linear(x, a) * 2.0, b)

        def one(x=x, weight=weight, a=a, b=b, ours=ours):
            return _Overlapped.apply(x, weight, None, a, b, ours)

        seconds = {plain: [], one: []}
        for _ in range(rounds):
            for call, found in seconds.items():
                start = time.process_time()
                call().backward(grad)
                found.append(time.process_time() - start)
        theirs, mine = (statistics.median(found[1:]) * 1e3 for found in seconds.values())
        print(
            f"  {tokens} tokens, {inputs} to {outputs}, rank {RANK}: plain {theirs:.1f} ms, "
            f"lora.overlap {mine:.1f} ms of CPU, {theirs / mine:.2f} times as fast"
        )


def train(folder, kind, words, options):
    """Useful tokens a second of each step, and the most memory of a process."""
    config = {
        "stage": "sft",
        "model": {"load": str(folder / "hf")},
        "data": {"train": [str(folder / "packed")]},
        "train": {
            "max_steps": options.steps,
            "seq_length": ROW,
            "global_batch_size": 1,
            "log_every": 1000,
        },
        "optimizer": {"lr": 1e-4},
        "parallel": {"tp": options.tp},
        "lora": {
            "target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"],
            "rank": RANK,
        },
        "save": {"path": str(folder / kind), "resume": "never"},
        "device": "cpu",
    }
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(config))
    # Threads that wait spin, which a clock of CPU time would count.
    threads = 1 if options.clock == "cpu" else max(1, 2 // options.tp)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    program = [sys.executable, CPU_CLOCK] if options.clock == "cpu" else [BIN / "llm-train"]
    command = [*program, "run", path, *words]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    lines = (folder / kind / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if "loss" in record]
    return [one["tokens_per_second"] for one in found], max(one["memory_bytes"] for one in found)


def steps(options):
    speeds, memory = {kind: [] for kind in KINDS}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, MODELS[options.model], 8 * options.steps)
        for _ in range(options.rounds):
            for kind, words in KINDS.items():
                found, memory[kind] = train(folder, kind, words, options)
                speeds[kind] += found[WARM_UP_STEPS:]
    count, clock = len(speeds["plain"]), options.clock
    print(f"{options.model}, tp {options.tp}, useful tokens/s, {clock} time, medians of {count}")
    plain = statistics.median(speeds["plain"])
    for kind, found in speeds.items():
        median = statistics.median(found)
        print(
            f"  {kind:8} {median:8.0f}   ({min(found):.0f} to {max(found):.0f})   "
            f"{median / plain:.2f} of plain   {memory[kind] / 2**20:.0f} MiB a process"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="quickstart")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: at tp 1")
    parser.add_argument("--products", action="store_true", help="the products alone")
    options = parser.parse_args()
    print("one linear and its adapter, forward and backward")
    products(rounds=10 * options.rounds + 1)
    if not options.products:
        steps(options)


if __name__ == "__main__":
    main()
