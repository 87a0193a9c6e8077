"""Whole runs with each backend: the same dataset, and the choice is told."""

import sys
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer

from llm_data.config import PreprocessConfig
from llm_data.edge.runs.pipeline import preprocess
from llm_data.edge.runs.specs import WORTH_A_PROOF_BYTES
from llm_data.edge.sources import readers, text_files
from llm_data.errors import DataError, UsageError


class Told:
    """A progress that keeps what is said, and stops the run after so many batches."""

    def __init__(self, most=None):
        self.lines = []
        self._left = most

    def say(self, message):
        self.lines.append(message)

    def update(self, *, done, total, note):
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt


@pytest.fixture
def config(corpus, tokenizer, tmp_path):
    return PreprocessConfig(
        inputs=[corpus],
        tokenizer=tokenizer,
        output=tmp_path / "d",
        append_eod=True,
        workers=1,
        tokenizer_backend="hf",
        chunk_bytes=100_000,
    )


def files_of(config):
    stem = config.stem
    return [stem.with_name(stem.name + end).read_bytes() for end in (".bin", ".idx")]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_run_with_gigatoken_has_the_bytes_of_one_with_hf(config, tmp_path, workers):
    preprocess(config)
    told = Told()
    fast = replace(config, output=tmp_path / "fast", tokenizer_backend="gigatoken", workers=workers)
    result = preprocess(fast, progress=told)
    assert files_of(fast) == files_of(config)
    assert told.lines[0].startswith("tokenizer backend: gigatoken; the same ids as hf in 64")
    assert "gigatoken" in result.manifest.created_by


def test_a_run_may_be_carried_on_with_the_other_backend(config, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BATCH_RECORDS", 1)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64 << 10)
    preprocess(config)
    for first, second in (("hf", "gigatoken"), ("gigatoken", "hf")):
        run = replace(config, output=tmp_path / first, tokenizer_backend=first)
        with pytest.raises(KeyboardInterrupt):
            preprocess(run, progress=Told(most=4))
        resumed = preprocess(replace(run, tokenizer_backend=second))
        assert resumed.resumed_documents > 0
        assert files_of(run) == files_of(config)


@pytest.fixture
def unlike(config, tmp_path):
    """A run whose tokenizer has a rule that gigatoken 0.10 does not know."""
    tokenizer = Tokenizer.from_file(str(config.tokenizer / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("ka", single_word=True)])
    (tmp_path / "unlike").mkdir()
    tokenizer.save(str(tmp_path / "unlike/tokenizer.json"))
    return replace(config, tokenizer=tmp_path / "unlike", append_eod=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mismatch_is_told_and_the_run_is_hfs(unlike, corpus, tmp_path, workers):
    big = tmp_path / "big.jsonl"
    text = corpus.read_bytes()
    big.write_bytes(text * (1 + WORTH_A_PROOF_BYTES // len(text)))
    told = Told(most=0)
    run = replace(unlike, inputs=[big], tokenizer_backend="auto", workers=workers)
    with pytest.raises(KeyboardInterrupt):
        preprocess(run, progress=told)
    assert "tokenizer backend: hf, because" in told.lines[0]
    assert "gigatoken does not give hf's ids" in told.lines[0]


def test_asking_for_gigatoken_where_it_differs_leaves_nothing_behind(unlike, tmp_path):
    with pytest.raises(DataError, match="gigatoken does not give hf's ids"):
        preprocess(replace(unlike, tokenizer_backend="gigatoken"))
    assert not list(tmp_path.glob("d_*"))


def test_asking_for_gigatoken_without_it_says_how_to_get_it(config, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(UsageError, match="pip install gigatoken"):
        preprocess(replace(config, tokenizer_backend="gigatoken"))
    assert not list(tmp_path.glob("d_*"))
