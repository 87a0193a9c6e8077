"""Runs of tasks that are killed, continued, spread over processes: always the same bytes."""

import json
import resource
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

import original_benchmarks as original
from llm_eval.edge import benchmark
from llm_eval.edge.engines import EngineChoice, _Pool
from llm_eval.edge.importing import import_data
from llm_eval.edge.perplexity import ModelChoice
from llm_eval.errors import EvalError
from llm_eval.harness.engine import Work

FILES = ("results.json", "samples.jsonl")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_lm import make_model

    folder = tmp_path_factory.mktemp("journal") / "model"
    return make_model(folder, "qwen3", context=256, spread=0.12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """HellaSwag of 60 documents, each a block of its own."""
    root = tmp_path_factory.mktemp("journal_data")
    source = original.hellaswag(root / "hellaswag", rows=60)
    import_data("hellaswag", [source], root / "data", partial=False, overwrite=False)
    return root / "data"


def _run(model, data, output, *, overwrite=False, limit=None, **changes):
    choice = benchmark.TaskChoice(
        names=("hellaswag",), include_path=None, num_fewshot=None, limit=limit, data=data
    )
    settings = {"batch_size": 8, "threads": 1, "data_parallel": 1} | changes
    chosen = ModelChoice(
        model=model, scorer="hf", device="cpu", dtype="float32", max_length=None, **settings
    )
    return benchmark.run(choice, chosen, output, overwrite=overwrite)


def _answered(output):
    lines = (output / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    return [key for line in lines for key, _ in json.loads(line)["answers"]]


def test_killed_and_continued_by_two_processes_is_byte_identical(model, data, tmp_path):
    output = tmp_path / "killed"
    # A forked copy of this process: a fresh one would spend its time importing.
    process = get_context("fork").Process(
        target=_run, args=(model, data, output), kwargs={"batch_size": 1}
    )
    process.start()
    journal = output / "journal.jsonl"
    try:
        deadline = time.monotonic() + 200
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert process.is_alive(), "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    before = _answered(output)
    assert not any((output / name).exists() for name in FILES)

    continued = _run(model, data, output, batch_size=16, data_parallel=2)
    whole = _run(model, data, tmp_path / "whole", batch_size=4)

    assert continued.num_resumed_batches == len(before) >= 20
    assert whole.num_resumed_batches == 0
    for name in FILES:
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_was_answered_is_never_asked_again_and_an_error_loses_nothing(
    model, data, tmp_path, monkeypatch
):
    from llm_eval.harness.hf_engine import HFEngine

    scored = []
    honest = HFEngine.score

    def fragile(self, work):
        scored.append(work)
        if len(scored) == 4:
            raise RuntimeError("device gone")
        return honest(self, work)

    monkeypatch.setattr(HFEngine, "score", fragile)
    output = tmp_path / "out"
    with pytest.raises(RuntimeError, match="device gone"):
        _run(model, data, output, limit=10, batch_size=1000)
    partial = json.loads((output / "partial.json").read_text())
    assert partial["partial"] is True
    assert partial["error"] == "RuntimeError: device gone"
    assert partial["scored_requests"] == len(_answered(output)) == 12
    assert not (output / "results.json").exists()

    def counting(self, work):
        scored.append(work)
        return honest(self, work)

    monkeypatch.setattr(HFEngine, "score", counting)
    scored.clear()
    _run(model, data, output, limit=10, batch_size=1)
    assert len(scored) == 7
    assert not (output / "partial.json").exists()
    assert not (output / "journal.jsonl").exists()


def test_a_full_disk_ends_with_a_clear_error_and_the_run_continues(model, data, tmp_path):
    """A limit on the size of files stands for the disk: the kernel refuses to write more."""
    output = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Between two lines of the journal: the answers of a document take more than 100 bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(EvalError, match=r"journal\.jsonl: cannot be written: File too large; "):
            _run(model, data, output, limit=12, batch_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    partial = json.loads((output / "partial.json").read_text())
    assert partial["partial"] is True
    kept = partial["scored_requests"]
    assert len(_answered(output)) == kept > 0
    assert (output / "journal.jsonl").read_bytes().endswith(b"\n")
    assert not list(output.glob(".*"))
    assert not (output / "results.json").exists()

    continued = _run(model, data, output, limit=12)
    whole = _run(model, data, tmp_path / "whole", limit=12)
    assert (continued.num_resumed_batches, whole.num_resumed_batches) == (kept, 0)
    for name in FILES:
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_threads_or_data_are_other_settings(model, data, tmp_path):
    _run(model, data, tmp_path / "out", limit=1)
    with pytest.raises(EvalError, match="threads: was 1, now 2"):
        _run(model, data, tmp_path / "out", limit=1, threads=2)
    assert _run(model, data, tmp_path / "out", limit=1, batch_size=3).was_finished


def test_a_scoring_process_that_cannot_start_ends_the_run(capfd):
    choice = EngineChoice(
        scorer="nowhere", model=Path("m"), device="cpu", dtype="auto", batch_size=1,
        max_length=None, threads=1, base_url=None, retries=0,
    )  # fmt: skip
    pool = _Pool(choice, 1)
    try:
        with pytest.raises(EvalError, match="a scoring process ended"):
            list(pool.answers([Work((0,), None)]))
    finally:
        pool.close()
    assert "no scorer named 'nowhere'" in capfd.readouterr().err


def test_requests_told_of_early_are_scored_early_in_the_same_segments():
    from lm_eval.api.instance import Instance

    from llm_eval.harness.engine import Serial
    from llm_eval.harness.journaled import JournaledLM

    class Lengths:
        """Scores a continuation by its length; keeps what it was asked together."""

        def __init__(self):
            self.planned = []

        def plan(self, kind, requests):
            self.planned.append(list(requests))
            yield Work(tuple(range(len(requests))), requests)

        def score(self, work):
            return [[-float(len(text)), 0] for _, text in work.task]

    class Memory(dict):
        lookup = dict.get

        def append(self, answers):
            self.update(answers)

    # Every tenth request is one that was asked before.
    texts = [("", "x" * (number - number // 10 * 5 % 7)) for number in range(2600)]
    tasks = [
        [Instance("loglikelihood", {}, text, 0, ("t", 0, 1)) for text in texts[start : start + 325]]
        for start in range(0, len(texts), 325)
    ]
    asked = [instance for task in tasks for instance in task]
    late = Lengths()
    expected = JournaledLM(late, Serial(late), Memory()).loglikelihood(asked)

    early = Lengths()
    lm = JournaledLM(early, Serial(early), Memory())
    for task in tasks:
        lm.expect(task)
    assert early.planned == late.planned[:-1]
    assert len(late.planned) == 3
    assert lm.loglikelihood(asked) == expected
    assert early.planned == late.planned
