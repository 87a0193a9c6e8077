"""Step time of llm-train against plain PyTorch and against transformers' Trainer.

One run measures all in turn, `--rounds` times, on the same number of cores: plain PyTorch and
Trainer in one process with two threads, llm-train the same, and llm-train in two tensor-parallel
processes with one thread each. It prints medians over all steps but the first few of each round.

    .venv/bin/python benchmarks/train_overhead.py --model quickstart --rounds 3
    .venv/bin/python benchmarks/train_overhead.py --model 50m --rounds 3 --batch 4
"""

import argparse
import json
import os
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
WARM_UP_STEPS = 3


def ours(folder, data, ranks, steps, batch, seq, threads):
    """Seconds of each step that llm-train writes into metrics.jsonl."""
    overrides = [
        f"model.load={folder / 'hf'}",
        f"data.train=[{data}]",
        f"save.path={folder / f'run{ranks}'}",
        "save.resume=never",
        f"train.max_steps={steps}",
        f"train.seq_length={seq}",
        f"train.global_batch_size={batch}",
        f"train.micro_batch_size={batch}",
        "train.log_every=1000000",
        f"optimizer.warmup_steps={min(20, steps - 1)}",
        f"parallel.tp={ranks}",
    ]
    config = ROOT / "examples" / "quickstart" / "train.yaml"
    command = [BIN / "llm-train", "run", config, *overrides, "--nproc", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    lines = (folder / f"run{ranks}" / "metrics.jsonl").read_text().splitlines()
    return [record["step_time_s"] for record in map(json.loads, lines) if "loss" in record]


def make_inputs(folder, model):
    """The model as a Hugging Face folder, and this interpreter's own library as tokens."""
    corpus = Path(os.__file__).parent / "asyncio"

    def run(*command):
        subprocess.run([BIN / command[0], *command[1:]], check=True, stderr=subprocess.DEVNULL)

    pattern = ["--pattern", "*.py"]
    tokenizer, data = folder / "t", folder / "d"
    train_tokenizer = ["train-tokenizer", corpus, *pattern, "--vocab-size", "8192"]
    run("llm-data", *train_tokenizer, "--output", tokenizer)
    run("llm-data", "preprocess", corpus, *pattern, "--tokenizer", tokenizer, "--output", data)
    run("llm-ckpt", "init", model, "--tokenizer", tokenizer, "--output", folder / "hf")
    return folder / "d_text_document"


def peer(script, model, options):
    """Seconds of each step of another program."""
    command = [sys.executable, HERE / script, model, "--threads", "2"]
    for name in ("steps", "batch", "seq"):
        command += [f"--{name}", str(getattr(options, name))]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="quickstart")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    options = parser.parse_args()
    steps, batch, seq, model = options.steps, options.batch, options.seq, MODELS[options.model]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_inputs(folder, model)
        runs = {
            "plain PyTorch, 2 threads": lambda: peer("plain.py", model, options),
            "transformers' Trainer, 2 threads": lambda: peer("trainer.py", model, options),
            "llm-train, 2 threads": lambda: ours(folder, data, 1, steps, batch, seq, threads=2),
            "llm-train, tp=2": lambda: ours(folder, data, 2, steps, batch, seq, threads=1),
        }
        times = {key: [] for key in runs}
        for number in range(options.rounds):
            for key, measure in runs.items():
                times[key] += measure()[WARM_UP_STEPS:]
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    medians = {key: statistics.median(seconds) for key, seconds in times.items()}
    plain, trainer = list(medians.values())[:2]
    print("| what | s/step | tokens/s | time of plain PyTorch | speed of Trainer |")
    print("|---|---|---|---|---|")
    for key, median in medians.items():
        print(
            f"| {key} | {median:.3f} | {batch * seq / median:.0f} "
            f"| {median / plain:.2f}x | {trainer / median:.2f}x |"
        )


if __name__ == "__main__":
    main()
