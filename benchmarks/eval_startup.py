"""Seconds from `llm-eval mmlu` to its first scored request, beyond loading the model.

    python benchmarks/eval_startup.py --rounds 3

All 57 subjects with `--questions` each (246 is MMLU's mean), imported, over a tiny random Llama.
Two processes in turn, started afresh: one that loads the model as transformers' users do (its
imports too), and the command, ended when its journal holds the first scores. It prints both and
their difference, as wall seconds and as CPU seconds, which say more on a busy machine; bar 5 s.
"""

import argparse
import csv
import io
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

COMMAND = Path(sys.executable).parent / "llm-eval"
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1])
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""
GOAL_S = 5.0
TEXT = "what which of these is a the in bridge iron 1848 light falls moves north cell"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=246)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        make_data(folder, options.questions)
        loads, firsts = [], []
        for number in range(options.rounds):
            loads.append(measure([sys.executable, "-c", LOAD, folder / "model"]))
            output = folder / f"out{number}"
            command = [COMMAND, "mmlu", "--model", folder / "model", "--data", folder / "data"]
            command += ["--output", output, "--batch-size", "1", "--threads", "1"]
            firsts.append(measure(command, until=output / "journal.jsonl"))
    print(f"{'':<28}{'wall s':>8}{'CPU s':>8}   medians of {options.rounds}")
    rows = {"load the model": loads, "to the first scored request": firsts}
    medians = {name: [statistics.median(t) for t in zip(*found, strict=True)]
               for name, found in rows.items()}  # fmt: skip
    for name, (wall_s, cpu_s) in medians.items():
        print(f"{name:<28}{wall_s:8.2f}{cpu_s:8.2f}")
    beyond = [b - a for a, b in zip(*medians.values(), strict=True)]
    print(f"{'beyond loading':<28}{beyond[0]:8.2f}{beyond[1]:8.2f}   bar {GOAL_S}")


def measure(command, until=None):
    """Wall and CPU seconds of a process, killed as soon as the file `until` is not empty."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    child = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    while until and child.poll() is None and not (until.is_file() and until.stat().st_size):
        time.sleep(0.01)
    if until:
        wall_s = time.perf_counter() - start
        child.send_signal(signal.SIGKILL)
    message = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status and status != signal.SIGKILL:
        raise SystemExit(f"{command[:2]} failed: {message.decode()[-2000:]}")
    if not until:
        wall_s = time.perf_counter() - start
    return wall_s, usage.ru_utime + usage.ru_stime


def make_model(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator([TEXT] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=4096, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def make_data(folder, questions):
    """MMLU in its authors' layout, imported."""
    tasks = Path(find_spec("lm_eval").origin).parent / "tasks" / "mmlu" / "default"
    subjects = sorted(path.stem.removeprefix("mmlu_") for path in tasks.glob("mmlu_*.yaml"))
    words = TEXT.split()
    with tarfile.open(folder / "data.tar", "w") as archive:
        for subject in subjects:
            for split, count in (("dev", 5), ("val", 1), ("test", questions)):
                text = io.StringIO()
                for row in range(count):
                    asked = " ".join(words[(row * step) % len(words)] for step in range(1, 30))
                    line = [f"{subject} {row}: {asked}?", "one", "two", "three", "four"]
                    csv.writer(text).writerow([*line, "ABCD"[row % 4]])
                content = text.getvalue().encode()
                entry = tarfile.TarInfo(f"data/{split}/{subject}_{split}.csv")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    command = [COMMAND, "import-data", "mmlu", folder / "data.tar", "--data", folder / "data"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
