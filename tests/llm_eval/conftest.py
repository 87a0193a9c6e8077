import os

import pytest

# As the command does, before anything imports the libraries.
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

MODULE = '''
from dataclasses import dataclass

@dataclass
class Rolling:
    logprob: float
    num_tokens: int

class Scorer:
    """Every character is a token of probability 1/e."""
    def loglikelihood_rolling(self, texts):
        calls.append(list(texts))
        return [Rolling(-float(len(text)), len(text)) for text in texts]

calls = []

def open_scorer(model, *, device, dtype, batch_size, max_length, threads):
    if model.name == "bad":
        raise ValueError("no weights I know")
    return Scorer()
'''


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Tiny llama and qwen3 folders."""
    from tiny_lm import make_model

    root = tmp_path_factory.mktemp("eval_models")
    return {family: make_model(root / family, family) for family in ("llama", "qwen3")}


@pytest.fixture(scope="session")
def roomy_model(tmp_path_factory):
    """A tiny qwen3 whose context holds a question with its examples."""
    from tiny_lm import make_model

    return make_model(tmp_path_factory.mktemp("eval_roomy") / "qwen3", "qwen3", context=128)


@pytest.fixture
def corpus(tmp_path):
    """Documents shorter than, as long as, and several times the 32 tokens of context."""
    from tiny_lm import TEXT

    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("Grüße")
    (folder / "b.txt").write_text(TEXT)
    (folder / "empty.txt").write_text("")
    (folder / "sub" / "c.txt").write_text(TEXT[::-1] * 2)
    (folder / "sub" / "d.txt").write_text("Grüße")
    return folder


@pytest.fixture
def scorer_site(tmp_path):
    """An installed package that provides the scorer `chars`, as a wheel would."""
    site = tmp_path / "site"
    info = site / "fake_scorer-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-scorer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[llm_eval.scorers]\nchars = fake_scorer:open_scorer\nlost = fake_scorer:nothing\n"
    )
    (site / "fake_scorer.py").write_text(MODULE)
    return site
