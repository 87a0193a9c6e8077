"""Killing the command at any time and running it again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llm_data.config import OnError, PreprocessConfig
from llm_data.edge.runs.pipeline import preprocess
from llm_data.edge.runs.planning import layout_of
from llm_data.edge.runs.run_folder import RunFolder
from llm_data.edge.sources import readers, text_files
from llm_data.errors import DataError

TAG = "LLM_DATA_TEST_TAG"
CHUNK_BYTES = 8 << 10


def outputs(stem: Path) -> list[bytes]:
    return [Path(f"{stem}{end}").read_bytes() for end in (".bin", ".idx", ".json")]


def processes_with(tag: str) -> list[int]:
    """Live processes that inherited the tag, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{TAG}={tag}".encode() in environment:
            found.append(int(entry.name))
    return found


def copies(folder: Path, corpus: Path, *, first: int, second: int, bad_every: int) -> Path:
    """Two files of so many copies; in the first, every so many lines a bad one follows."""
    folder.mkdir()
    lines = corpus.read_bytes().splitlines(keepends=True)
    marked = [b"".join(lines[i : i + bad_every]) for i in range(0, len(lines), bad_every)]
    (folder / "a.jsonl").write_bytes(b"".join(part + b"{broken\n" for part in marked * first))
    (folder / "b.jsonl").write_bytes(b"".join(lines) * second)
    return folder


@pytest.fixture
def big_corpus(tmp_path, corpus) -> Path:
    """Long enough to be killed in the middle."""
    return copies(tmp_path / "big", corpus, first=3, second=2, bad_every=50)


@pytest.fixture
def small_corpus(tmp_path, corpus, monkeypatch) -> Path:
    """Short, in small batches."""
    monkeypatch.setattr(readers, "BATCH_RECORDS", 1)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 2 * CHUNK_BYTES)
    return copies(tmp_path / "small", corpus, first=1, second=1, bad_every=3000)


@pytest.fixture
def config(small_corpus, tokenizer, tmp_path) -> PreprocessConfig:
    return PreprocessConfig(
        inputs=[small_corpus],
        tokenizer=tokenizer,
        output=tmp_path / "out" / "train",
        append_eod=True,
        on_error=OnError.SKIP,
        workers=1,
        chunk_bytes=CHUNK_BYTES,
    )


def run_folder(config: PreprocessConfig) -> RunFolder:
    return RunFolder(layout_of(config, [config.key]))


def start(config: PreprocessConfig, *, workers: int, tag: str) -> subprocess.Popen:
    command = [
        *(sys.executable, "-c", "from llm_data.cli import main; main()", "preprocess"),
        *map(str, config.inputs),
        *("--tokenizer", str(config.tokenizer), "--output", str(config.output)),
        *("--append-eod", "--on-error", "skip", "--workers", str(workers)),
        *("--chunk-mib", str(config.chunk_bytes / (1 << 20))),
    ]
    return subprocess.Popen(
        command, env={**os.environ, TAG: tag}, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def wait_for(condition, *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_and_rerun_is_byte_identical(config, big_corpus, tmp_path, workers):
    """Killed twice, each time after more chunks; then run to its end in this process."""
    config = replace(config, inputs=[big_corpus])
    whole = replace(config, output=tmp_path / "whole" / "train")
    preprocess(whole)
    progress = Path(f"{config.stem}.parts/progress.json")
    done = 0
    for attempt in range(2):
        tag = f"{tmp_path.name}-{attempt}"
        process = start(config, workers=workers, tag=tag)

        def further(done=done):
            return progress.exists() and _documents(progress) > done

        wait_for(further)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        done = _documents(progress)
        assert not config.stem.with_name(config.stem.name + ".bin").exists()
        wait_for(lambda tag=tag: not processes_with(tag), seconds=120)
    result = preprocess(config)
    assert result.resumed_documents == done > 0
    assert outputs(config.stem) == outputs(whole.stem)
    rejects = Path(f"{config.stem}.rejects.jsonl").read_bytes()
    assert rejects == Path(f"{whole.stem}.rejects.jsonl").read_bytes()
    assert not progress.parent.exists()


def _documents(progress: Path) -> int:
    return json.loads(progress.read_bytes())["marks"]["text"]["num_documents"]


class StoppedError(Exception):
    """Stands in for a kill at an exact place."""


class StopAfter:
    """A progress display that interrupts at its nth update."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def update(self, *, done: int, total: int, note: str) -> None:
        self.left -= 1
        if not self.left:
            raise StoppedError

    def say(self, text: str) -> None:
        pass


def test_at_most_one_chunk_is_done_again(config):
    """The records read after resuming begin within a chunk of where the run was stopped."""
    with pytest.raises(StoppedError):
        preprocess(config, progress=StopAfter(20))
    state = run_folder(config).load()
    assert state is not None
    # A batch is ≥ CHUNK_BYTES here, so each update but the interrupting one ended a chunk.
    counted = StopAfter(0)
    preprocess(config, progress=counted)
    batches = -counted.left
    whole = StopAfter(0)
    preprocess(replace(config, output=config.output.with_name("whole")), progress=whole)
    assert batches + 19 == -whole.left


@pytest.mark.parametrize("step", range(4))
def test_a_kill_between_the_last_renames_is_mended(config, tmp_path, monkeypatch, step):
    whole = replace(config, output=tmp_path / "whole" / "train")
    preprocess(whole)
    renames = Path.replace
    done = 0

    def failing(self, target):
        nonlocal done
        if ".parts/" in str(self) and ".parts" not in str(target):
            if done == step:
                raise StoppedError
            done += 1
        return renames(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(StoppedError):
        preprocess(config)
    monkeypatch.undo()
    assert not Path(f"{config.stem}.json").exists()
    preprocess(config)
    assert outputs(config.stem) == outputs(whole.stem)
    assert not Path(f"{config.stem}.parts").exists()


def interrupt(config: PreprocessConfig) -> None:
    with pytest.raises(StoppedError):
        preprocess(config, progress=StopAfter(5))


def test_an_unfinished_run_of_another_kind_is_not_continued(config):
    interrupt(config)
    other = replace(config, append_eod=False)
    with pytest.raises(DataError, match=r"eod id was 0, is None; --no-resume starts over"):
        preprocess(other)
    assert preprocess(replace(other, resume=False)).resumed_documents == 0


def test_no_resume_starts_over(config):
    interrupt(config)
    assert preprocess(replace(config, resume=False)).resumed_documents == 0


def test_stopping_at_a_bad_line_can_go_on_with_skip(config):
    strict = replace(config, on_error=OnError.STOP)
    with pytest.raises(DataError, match="line 3001"):
        preprocess(strict)
    result = preprocess(config)
    assert 0 < result.resumed_documents <= 3000
    assert result.manifest.drops == {"invalid_json": 1}
    assert result.manifest.num_documents == 2 * 3000


def test_interrupted_overwriting_goes_on_where_it_was(config):
    preprocess(replace(config, append_eod=False))
    again = replace(config, overwrite=True)
    interrupt(again)
    assert not Path(f"{config.stem}.json").exists(), "the old manifest would vouch for new bytes"
    assert preprocess(again).resumed_documents > 0


def test_two_runs_do_not_write_at_once(config):
    folder = run_folder(config)
    with folder.locked(), pytest.raises(DataError, match="another llm-data is writing here"):
        preprocess(config)


def test_a_state_that_cannot_be_read_is_named(config):
    interrupt(config)
    Path(f"{config.stem}.parts/progress.json").write_text('{"state_version": 2}')
    with pytest.raises(DataError, match=r"progress\.json: not a state this version wrote"):
        preprocess(config)
    preprocess(replace(config, resume=False))
