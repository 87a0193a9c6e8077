"""Fine-tuning: packed rows against padded ones, TRL's SFTTrainer, memory of adapters.

All take the same conversations, of lengths like Alpaca's (log-normal, median 60 words), once
through. Speed is useful tokens (padding is none) over seconds, of the whole epoch: short batches
are quick, and a median of steps would hide the few that a long conversation makes slow. Padded are
they to the longest of their batch, ours and TRL's, and once to the row, as MindSpeed-LLM and
Megatron-LM do unless told otherwise; of that, whose steps all cost the same, only some are run.

    .venv/bin/python benchmarks/sft.py --model quickstart --trl-python /tmp/trl/bin/python
    .venv/bin/python benchmarks/sft.py --model 50m --conversations 80 --rounds 2

TRL is measured where `--trl-python` is one that has it: uv venv /tmp/trl, then in it pip install
trl setuptools with the torch and transformers that are used here. `--clock cpu --threads 1` is for
a machine that does other work: CPU seconds.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "training"
MODELS = {
    "quickstart": ROOT / "examples" / "quickstart" / "model.json",
    "50m": HERE / "model_50m.json",
}
BIN = Path(sys.executable).parent
WARM_UP_STEPS = 2
ROW_STEPS = 4
MEDIAN_WORDS, SPREAD, LONGEST = 60, 0.75, 800
ROW = 1024
LORA = [
    'lora.target_modules=["linear_qkv","linear_proj","linear_fc1","linear_fc2"]',
    "lora.rank=16",
]
PADDED, TO_ROW, PACKED, ADAPTERS = "padded", "padded to the row", "packed", "packed, LoRA"
TRL = "TRL, padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Useful tokens and seconds of each step behind the warm-up."""

    tokens: list[float]
    seconds: list[float]

    @property
    def speed(self):
        return sum(self.tokens) / sum(self.seconds)


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
        for length in words_of(count):
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


def words_of(count):
    """Lengths in words: the quantiles of their distribution, so that few spread like many."""
    normal = statistics.NormalDist(0.0, SPREAD)
    quantiles = (normal.inv_cdf((i + 0.5) / count) for i in range(count))
    return [int(min(LONGEST, max(8, math.exp(z) * MEDIAN_WORDS))) for z in quantiles]


def rows_of(prefix):
    """Ids and labels of every row of a dataset of llm-data."""
    warnings.simplefilter("ignore")  # megatron-core's, of what is not installed
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    ids, labels = (
        IndexedDataset(f"{prefix}_packed_{name}_document") for name in ("input_ids", "labels")
    )
    return [(ids[row].tolist(), labels[row].tolist()) for row in range(len(ids))]


class Bench:
    """One folder of inputs, and the programs that train on them."""

    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        make_inputs(folder, MODELS[options.model], options.conversations)
        singles = rows_of(folder / "single")
        self.tokens = [len(ids) for ids, _ in singles]
        self.learned = sum(label >= 0 for _, labels in singles for label in labels)
        self.packed_rows = len(rows_of(folder / "packed"))
        lines = (json.dumps({"ids": ids, "labels": labels}) for ids, labels in singles)
        (folder / "single.jsonl").write_text("\n".join(lines))
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}

    def ours(self, kind):
        """The steps of one kind, and the most memory of the process."""
        is_packed = kind in (PACKED, ADAPTERS)
        batch = 1 if is_packed else self.options.batch
        steps = self.packed_rows if is_packed else len(self.tokens) // batch
        steps = ROW_STEPS if kind == TO_ROW else steps
        name = kind.replace(", ", "_").replace(" ", "_")
        config = {
            "stage": "sft",
            "model": {"load": str(self.folder / "hf")},
            "data": {"train": [str(self.folder / ("packed" if is_packed else "single"))]},
            "train": {
                "max_steps": WARM_UP_STEPS + steps,
                "seq_length": ROW,
                "global_batch_size": batch,
                "micro_batch_size": batch,
                "log_every": 1000,
            },
            "optimizer": {"lr": 1e-4},
            "sft": {"pad_to": ROW if kind == TO_ROW else 8},
            "save": {"path": str(self.folder / name), "resume": "never"},
            "device": "cpu",
        }
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config))
        is_cpu = self.options.clock == "cpu"
        command = [sys.executable, HERE / "cpu_clock.py"] if is_cpu else [BIN / "llm-train"]
        words = LORA if kind == ADAPTERS else []
        subprocess.run(
            [*command, "run", path, *words],
            check=True,
            env=self.environment,
            stderr=subprocess.DEVNULL,
        )
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        found = [record for record in map(json.loads, lines) if "loss" in record]
        behind = found[WARM_UP_STEPS:]
        seconds = [one["step_time_s"] for one in behind]
        tokens = [one["tokens_per_second"] * one["step_time_s"] for one in behind]
        if kind == TO_ROW:
            # Every step costs the same, however much is useful in it: those of the whole epoch.
            seconds = [statistics.median(seconds)] * len(seconds)
            tokens = [batch * statistics.fmean(self.tokens)] * len(seconds)
        return Steps(tokens=tokens, seconds=seconds), max(one["memory_bytes"] for one in found)

    def trl(self):
        """The steps of TRL's SFTTrainer, on the ids that llm-data made."""
        options = self.options
        command = [options.trl_python, HERE / "trl_sft.py", self.folder / "hf"]
        command += ["--data", self.folder / "single.jsonl", "--batch", str(options.batch)]
        command += ["--steps", str(WARM_UP_STEPS + len(self.tokens) // options.batch)]
        command += ["--threads", str(options.threads), "--clock", options.clock]
        done = subprocess.run(
            command,
            check=True,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return Steps(
            tokens=found["tokens"][WARM_UP_STEPS:], seconds=found["seconds"][WARM_UP_STEPS:]
        )


def useful_share(lengths, size):
    """Tokens over places of batches padded to their longest, in the mean over orders."""
    rng, useful, places = random.Random(0), 0, 0
    for _ in range(200):
        batch = rng.sample(lengths, size)
        useful, places = useful + sum(batch), places + size * max(batch)
    return useful / places


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="quickstart")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8, help="padded conversations a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--trl-python", help="a Python that has trl")
    options = parser.parse_args()
    runs, memory = {}, {}
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options)
        for _ in range(options.rounds):
            for kind in (PADDED, TO_ROW, PACKED, ADAPTERS):
                found, memory[kind] = bench.ours(kind)
                runs.setdefault(kind, []).append(found)
            if options.trl_python:
                runs.setdefault(TRL, []).append(bench.trl())
    report(bench, runs, memory)


def report(bench, runs, memory):
    """Speeds of the rounds, their medians' ratios, memory."""
    options, total = bench.options, sum(bench.tokens)
    share = useful_share(bench.tokens, options.batch)
    print(f"{options.model}, {options.clock} time, {options.threads} threads")
    print(f"{len(bench.tokens)} conversations of {min(bench.tokens)} to {max(bench.tokens)} tokens")
    print(f"median {statistics.median(bench.tokens)}, {bench.learned / total:.0%} learned")
    print(f"useful in batches of {options.batch}: {share:.0%} padded to the longest,", end=" ")
    print(f"{total / len(bench.tokens) / ROW:.0%} to the row; packed", end=" ")
    print(f"{total / bench.packed_rows / ROW:.0%}")
    medians = {kind: statistics.median([one.speed for one in of]) for kind, of in runs.items()}
    print(f"useful tokens/s, medians of {options.rounds} epochs")
    for kind, value in medians.items():
        speeds = [one.speed for one in runs[kind]]
        print(f"  {kind:18} {value:8.0f}   ({min(speeds):.0f} to {max(speeds):.0f})")
    packed, padded = medians[PACKED], medians[PADDED]
    print(f"  packed / padded              {packed / padded:6.2f} (goal 2)", end=" ")
    print(f"at the same cost of a token it would be {1 / share:.2f}")
    print(f"  packed / padded to the row   {packed / medians[TO_ROW]:6.2f}")
    if TRL in medians:
        print(f"  padded / TRL                 {padded / medians[TRL]:6.2f} (goal 1)")
    full, low = (memory[kind] / 2**20 for kind in (PACKED, ADAPTERS))
    print(f"  most memory of the process: full {full:.0f} MiB, LoRA {low:.0f} MiB")


if __name__ == "__main__":
    main()
