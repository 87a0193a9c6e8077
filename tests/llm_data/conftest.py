"""Tokenizers and corpora that several tests read."""

import json
import random
import shutil
from pathlib import Path

import pytest

from llm_data.config import TrainingConfig
from llm_data.edge.tokenizer_training import train_tokenizer

GOLDEN_TOKENIZER = Path(__file__).parents[1] / "contracts/token_dataset/golden/tokenizer"
SYLLABLES = (
    *("ka", "lo", "mi", "ter", "son", "ing", "pre", "ba", "qu", "é", "日", "本", "über", "🙂"),
    *("def", "return", "(self):", "=", "+", "1", "\t\n"),
)


def make_texts(count: int, *, seed: int, words: int = 60) -> list[str]:
    """Texts of 1 to `words` words of up to three syllables, some with a space too many."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        sizes = rng.choices([1, 2, 3], k=rng.randint(1, words))
        texts.append(" ".join("".join(rng.choices(SYLLABLES, k=size)) for size in sizes))
        texts[-1] += rng.choice(["", "", "  ", "\n"])
    return texts


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A jsonl file of 3,000 documents, about 500 kB."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = make_texts(3000, seed=1)
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    return path


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, corpus) -> Path:
    """A trained tokenizer with merges."""
    folder = tmp_path_factory.mktemp("tokenizer") / "trained"
    train_tokenizer(TrainingConfig(inputs=[corpus], output=folder, vocab_size=400))
    return folder


@pytest.fixture
def bytes_tokenizer(tmp_path) -> Path:
    """The golden tokenizer, a private copy."""
    return Path(shutil.copytree(GOLDEN_TOKENIZER, tmp_path / "bytes_tokenizer"))
