"""Training from raw text: the losses of preprocess and train, and no text tokenized twice."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tiny_lm import make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
ARCH = ROOT / "tests/contracts/arch/golden/llama_tiny.json"
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Workplace:
    """A corpus, a tokenizer and a model's shape."""

    folder: Path

    def config(self, name: str, data: dict) -> Path:
        """The config of a run of three steps, on `data`."""
        path = self.folder / f"{name}.yaml"
        document = {
            "model": {"arch": str(self.folder / "arch.json"), "init_std": 0.1},
            "data": data,
            "train": {"max_steps": 3, "seq_length": 32, "global_batch_size": 2},
            "optimizer": {"lr": 1e-3},
            "save": {"path": str(self.folder / name)},
            "device": "cpu",
        }
        path.write_text(json.dumps(document))
        return path

    def losses(self, name: str) -> list[float]:
        """The loss of each step of a run."""
        lines = map(json.loads, (self.folder / name / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("raw")
    make_tokenizer(folder / "tokenizer")
    texts = [f"Document {number}: " + "naïve façade, 你好 " * (number % 7) for number in range(60)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "arch.json").write_text(
        json.dumps({**json.loads(ARCH.read_text()), "vocab_size": 320})
    )
    return Workplace(folder)


def run(command: str, *words: object) -> subprocess.CompletedProcess[str]:
    arguments = [str(BIN / command), *map(str, words)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=250)


def test_raw_text_trains_as_preprocessed_text_does_and_is_tokenized_once(workplace: Workplace):
    folder = workplace.folder
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
    words = ("preprocess", corpus, "--tokenizer", tokenizer, "--append-eod", "--output")
    done = run("llm-data", *words, folder / "ready")
    assert done.returncode == 0, done.stderr
    done = run(
        "llm-train",
        "run",
        workplace.config("from-tokens", {"train": [str(folder / "ready_text_document")]}),
    )
    assert done.returncode == 0, done.stderr

    raw = {"raw": {"train": [str(corpus)], "tokenizer": str(tokenizer)}}
    config = workplace.config("from-text", raw)
    first = run("llm-train", "run", config)
    assert first.returncode == 0, first.stderr
    assert f"tokenized: {corpus} →" in first.stderr
    assert workplace.losses("from-text") == workplace.losses("from-tokens")
    assert len(workplace.losses("from-text")) == 3

    made = folder / "from-text/data/train_text_document.bin"
    assert made.read_bytes() == (folder / "ready_text_document.bin").read_bytes()
    before = made.stat()
    # Two ranks this time: the launcher prepares the data, and tells them where it is.
    words = ("train.max_steps=4", "optimizer.decay_steps=3", "parallel.tp=2")
    again = run("llm-train", "run", config, *words)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already tokenized:") == 1
    assert "\ntokenized" not in again.stderr
    assert made.stat() == before
    assert len(workplace.losses("from-text")) == 4

    with corpus.open("a") as file:
        file.write('{"text": "later"}\n')
    changed = run("llm-train", "run", config, "train.max_steps=5")
    assert changed.returncode == 1
    assert "made by a different run: input" in changed.stderr
    assert "another save.path" in changed.stderr
    assert made.stat() == before
