"""Closes the quickstart: what was made, whether it learned, and what to try next.

Run as `python report.py WORKDIR`. The exit status is 1 when the loss did not fall or the
perplexity on held-out text is not lower than before training.
"""

import json
import shlex
import sys
from pathlib import Path

# Means over this many steps at either end: a single batch is too noisy to judge by.
STEPS_AT_EACH_END = 5

STEPS = (
    ("corpus", "corpus", "text, for training and held out"),
    ("tokenizer", "tokenizer", "byte-level BPE tokenizer"),
    ("data", "data", "token dataset"),
    ("init", "hf-init", "random model, Hugging Face folder"),
    ("convert", "mcore-init", "the same for Megatron-core, two ranks"),
    ("train", "run", "training run: checkpoints, metrics, logs"),
    ("plot", "loss.png", "loss curve"),
    ("back", "hf-trained", "trained model, Hugging Face folder"),
    ("before", "eval-before", "perplexity before training"),
    ("after", "eval-after", "perplexity after training"),
    ("compare", "", "the two compared"),
    ("generate", "", "text from the trained model"),
)


def main() -> int:
    """Print the summary; 1 when nothing was learned."""
    if len(sys.argv) != 2:
        print("Usage: python report.py WORKDIR", file=sys.stderr)
        return 2
    work = Path(sys.argv[1])
    print_steps(work)
    losses = read_losses(work / "run" / "metrics.jsonl")
    before, after = (read_perplexity(work / f"eval-{when}") for when in ("before", "after"))
    print(f"Loss:       {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
    print(
        f"Perplexity: {before:.1f} before training, {after:.1f} after (per token, held-out files)"
    )
    ends = mean(losses[:STEPS_AT_EACH_END]), mean(losses[-STEPS_AT_EACH_END:])
    problems = []
    if not ends[1] < ends[0]:
        problems.append(
            f"the loss did not fall: mean {ends[0]:.4f} at first, {ends[1]:.4f} at last"
        )
    if not after < before:
        problems.append(f"the perplexity did not drop: {before:.4f} before, {after:.4f} after")
    for problem in problems:
        print(f"Error: {problem} ({work / 'run' / 'metrics.jsonl'})", file=sys.stderr)
    if not problems:
        print_next(work)
    return 1 if problems else 0


def print_steps(work: Path) -> None:
    """One line a step, then the totals."""
    records = {
        name: json.loads((work / ".steps" / f"{name}.json").read_text()) for name, *_ in STEPS
    }
    print("\nWhat was made                               seconds  memory")
    for name, made, what in STEPS:
        place = str(work / made) if made else ""
        memory = gigabytes(records[name]["peak_bytes"])
        print(
            f"  {place:24} {what:40}"[:68].ljust(68) + f"{records[name]['seconds']:7.1f} {memory}"
        )
    seconds = sum(record["seconds"] for record in records.values())
    peaks = [record["peak_bytes"] for record in records.values() if record["peak_bytes"]]
    print(f"\nTime:       {seconds / 60:.1f} minutes for all steps")
    if peaks:
        print(
            f"Memory:     {gigabytes(max(peaks)).strip()} at most, all processes of a step together"
        )


def print_next(work: Path) -> None:
    """Commands that work on what was made."""
    folder = shlex.quote(str(work))
    print(
        f"""
Try next:
  llm-infer generate {folder}/hf-trained --prompt 'class ' --temperature 0.8 --seed 1
  llm-data inspect {folder}/data/train_text_document --tokenizer {folder}/tokenizer
  llm-ckpt inspect {folder}/run
  llm-ckpt convert {folder}/run --output {folder}/mcore-tp1 --to mcore --tp 1
  llm-ckpt verify {folder}/mcore-tp1 {folder}/hf-trained
  llm-train check examples/quickstart/train.yaml --world-size 2
Look at {work / "loss.png"}."""
    )


def read_losses(path: Path) -> list[float]:
    """The loss of every step, in order."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [float(line["loss"]) for line in lines if "loss" in line]


def read_perplexity(folder: Path) -> float:
    """The perplexity per token out of llm-eval's results."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return float(results["results"]["perplexity"]["token_perplexity,none"])


def mean(values: list[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def gigabytes(size: int | None) -> str:
    """A size for the table; empty where it could not be measured."""
    return "" if size is None else f"{size / 1e9:5.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
