import os
import signal
import subprocess
import sys

import pytest

from llm_data.edge.runs import workers
from llm_data.edge.runs.workers import DEPTH, Crew
from llm_data.errors import DataError
from llm_data.records import Batch, Place, Record, Shape
from llm_data.tasks.pretrain import PretrainSpec


def batches(count, size=1):
    for number in range(count):
        text = f"{number} " * size
        record = Record(Place(0, number, number), Shape.TEXT, text)
        yield Batch(parts=[record], payload_bytes=len(text))


@pytest.fixture
def spec(tokenizer):
    return PretrainSpec(
        tokenizer_file=tokenizer / "tokenizer.json", key="text", eod_id=None, dtype="int32"
    )


@pytest.fixture
def started(monkeypatch):
    """The processes the pool starts, as it starts them."""
    every = []

    def start(*arguments, **options):
        every.append(popen(*arguments, **options))
        return every[-1]

    popen = workers.subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", start)
    return every


def test_order_is_kept_and_big_batches_do_not_lock_up(spec):
    """Batches far larger than a pipe's buffer go both ways at once."""
    with Crew(1) as one, Crew(3) as three:
        alone = list(one.encode(batches(24, 50_000), spec))
        several = list(three.encode(batches(24, 50_000), spec))
    assert several == alone
    assert [item.end.number for item in several] == list(range(24))


def test_no_more_is_read_than_the_workers_may_hold(spec, started):
    taken = 0

    def counted():
        nonlocal taken
        for batch in batches(100):
            taken += 1
            yield batch

    with Crew(2) as crew:
        next(crew.encode(counted(), spec))
        assert taken == DEPTH * 2
        assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def test_a_killed_worker_is_an_error_not_a_hang(spec, started):
    with Crew(2) as crew:
        encoded = crew.encode(batches(1000), spec)
        next(encoded)
        os.kill(started[1].pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"worker 1 ended with exit code -9"):
            list(encoded)


def test_a_script_without_a_guard_may_use_workers(tokenizer, corpus, tmp_path):
    """`multiprocessing` would run such a script again in every worker."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from llm_data import api\n"
        f"config = api.PreprocessConfig(inputs=[Path({str(corpus)!r})], workers=2,\n"
        f"    tokenizer=Path({str(tokenizer)!r}), output=Path({str(tmp_path / 'd')!r}))\n"
        "print('documents', api.preprocess(config).manifest.num_documents)\n"
    )
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("documents 3000\n", "")
