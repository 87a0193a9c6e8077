"""A run killed with SIGKILL, continued, against one left alone."""

import json
import signal
import subprocess
import sys
import time

import pytest

from llm_eval.edge.perplexity import DocumentChoice, ModelChoice, run

FILES = ("results.json", "samples.jsonl")


def _choices(models, folder):
    documents = DocumentChoice(inputs=(folder,), pattern="*.txt", text_key="text", limit=None)
    model = ModelChoice(
        model=models["qwen3"],
        scorer="hf",
        device="cpu",
        dtype="auto",
        batch_size=2,
        max_length=None,
    )
    return documents, model


@pytest.fixture
def many(tmp_path):
    from tiny_lm import TEXT

    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(TEXT[number:] * 5)
    return folder


def test_killed_and_continued_is_byte_identical_and_redoes_one_batch_at_most(
    models, many, tmp_path
):
    output = tmp_path / "killed"
    command = [
        *(sys.executable, "-c", "from llm_eval.cli import main; main()"),
        *("perplexity", many, "--model", models["qwen3"], "--output", output),
        *("--batch-size", "2", "--device", "cpu"),
    ]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    journal = output / "journal.jsonl"
    try:
        deadline = time.monotonic() + 270
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    scored = [json.loads(line)["key"] for line in journal.read_bytes().split(b"\n")[:-1]]
    assert not any((output / name).exists() for name in FILES)

    continued = run(*_choices(models, many), output, overwrite=False)
    whole = run(*_choices(models, many), tmp_path / "whole", overwrite=False)

    assert continued.num_resumed_batches == len(scored) >= 5
    assert whole.num_resumed_batches == 0
    for name in FILES:
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
