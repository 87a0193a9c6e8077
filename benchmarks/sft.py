"""Fine-tuning: packed rows against padded ones, TRL's SFTTrainer, memory of adapters.

All runs take the same conversations, of lengths like Alpaca's (log-normal, median 75 tokens), and
count useful tokens: padding is none. They run in turn, `--rounds` times, on two threads.

    .venv/bin/python benchmarks/sft.py --model quickstart --rounds 2
    .venv/bin/python benchmarks/sft.py --model 50m --rounds 2 --steps 8

TRL is measured where it is installed (pip install trl).
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "training"
MODELS = {
    "quickstart": ROOT / "examples" / "quickstart" / "model.json",
    "50m": HERE / "model_50m.json",
}
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2"}
WARM_UP_STEPS = 2
MEDIAN_WORDS, SPREAD, LONGEST = 60, 0.75, 800
ROW = 1024
BATCH = 8


def run(*command):
    subprocess.run([BIN / command[0], *command[1:]], check=True, stderr=subprocess.DEVNULL)


def make_inputs(folder, model, count):
    """A model with its tokenizer, the conversations, and both datasets of them."""
    corpus = Path(os.__file__).parent / "asyncio"
    words = ["train-tokenizer", corpus, "--pattern", "*.py", "--vocab-size", "8192"]
    run("llm-data", *words, "--output", folder / "t")
    run("llm-ckpt", "init", model, "--tokenizer", folder / "t", "--output", folder / "hf")
    rng = random.Random(0)
    names = sorted({w for p in corpus.glob("*.py") for w in p.read_text().split() if w.isalpha()})
    with (folder / "chats.jsonl").open("w") as file:
        for _ in range(count):
            length = int(min(LONGEST, max(8, rng.lognormvariate(0.0, SPREAD) * MEDIAN_WORDS)))
            text = rng.choices(names, k=length)
            turns = [
                {"role": "user", "content": " ".join(text[: length // 3])},
                {"role": "assistant", "content": " ".join(text[length // 3 :])},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    base = ["preprocess", folder / "chats.jsonl", "--task", "sft", "--template", "chatml"]
    base += ["--tokenizer", folder / "t", "--seq-length", str(ROW)]
    run("llm-data", *base, "--output", folder / "single")
    run("llm-data", *base, "--pack", "--output", folder / "packed")


def ours(folder, name, data, steps, *, batch, words=()):
    """Useful tokens a second of each step, and the most memory of the process."""
    config = {
        "stage": "sft",
        "model": {"load": str(folder / "hf")},
        "data": {"train": [str(folder / data)]},
        "train": {
            "max_steps": steps,
            "seq_length": ROW,
            "global_batch_size": batch,
            "micro_batch_size": batch,
            "log_every": 1000,
        },
        "optimizer": {"lr": 1e-4},
        "save": {"path": str(folder / name), "resume": "never"},
        "device": "cpu",
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    command = [BIN / "llm-train", "run", path, *words]
    subprocess.run(command, check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if "loss" in record]
    return [one["tokens_per_second"] for one in found], max(one["memory_bytes"] for one in found)


def trl(folder, steps, model):
    """The same of TRL's SFTTrainer, on the ids that llm-data made."""
    command = [sys.executable, HERE / "trl_sft.py", model, "--data", folder / "single"]
    command += ["--steps", str(steps), "--batch", str(BATCH)]
    done = subprocess.run(
        command,
        check=True,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="quickstart")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    lora = [
        'lora.target_modules=["linear_qkv","linear_proj","linear_fc1","linear_fc2"]',
        "lora.rank=16",
    ]
    has_trl = importlib.util.find_spec("trl") is not None
    speeds, memory = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, MODELS[options.model], count=BATCH * options.steps * 2)
        # As many tokens a step: a row of 1024 holds about eight conversations.
        kinds = {
            "padded": ("single", BATCH, []),
            "packed": ("packed", 1, []),
            "packed, LoRA": ("packed", 1, lora),
        }
        for _ in range(options.rounds):
            for kind, (data, batch, words) in kinds.items():
                found, memory[kind] = ours(
                    folder, kind.replace(", ", "_"), data, options.steps, batch=batch, words=words
                )
                speeds.setdefault(kind, []).extend(found[WARM_UP_STEPS:])
            if has_trl:
                found = trl(folder, options.steps, folder / "hf")
                speeds.setdefault("TRL, padded", []).extend(found[WARM_UP_STEPS:])
    medians = {kind: statistics.median(found) for kind, found in speeds.items()}
    print(f"{options.model}, useful tokens/s, medians of {len(speeds['padded'])} steps")
    for kind, value in medians.items():
        low, high = min(speeds[kind]), max(speeds[kind])
        print(f"  {kind:14} {value:8.0f}   ({low:.0f} to {high:.0f})")
    print(f"  packed / padded        {medians['packed'] / medians['padded']:.2f} (goal 2)")
    if has_trl:
        print(f"  padded / TRL           {medians['padded'] / medians['TRL, padded']:.2f} (goal 1)")
    full, low = memory["packed"], memory["packed, LoRA"]
    print(f"  memory of the process: full {full / 2**20:.0f} MiB, LoRA {low / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
