"""The whole quickstart, small: killed in the middle of training, started again, and again.

One run is shared by all tests here, which one worker runs (tests/conftest.py): it takes minutes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli_surface import ROOT

SCRIPT = ROOT / "examples" / "quickstart.sh"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
STEPS = 30
SAVED_AT = 10
START_SECONDS = 400
# The first test waits for all three starts: a minute each on a machine with nothing else to do.
pytestmark = pytest.mark.timeout(1500)


@dataclass(frozen=True, slots=True)
class Story:
    """What three starts of one quickstart left behind."""

    work: Path
    training_was_done: bool
    made_after_kill: frozenset[str]
    left_running: list[str]
    second: subprocess.CompletedProcess[str]
    third: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    work = tmp_path_factory.mktemp("quickstart") / "work"
    kill_in_training(work)
    record = json.loads((work / ".steps" / "train.json").read_text())
    made = frozenset(path.name for path in work.iterdir())
    left = processes_about(work)
    second = start(work)
    third = start(work)
    return Story(
        work=work,
        training_was_done=record["is_done"],
        made_after_kill=made,
        left_running=left,
        second=second,
        third=third,
    )


def start(work: Path) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), "--tiny", str(work)]
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=500
    )


def kill_in_training(work: Path) -> None:
    """Start the quickstart and kill -9 it once training has gone past its first checkpoint."""
    log = work.parent / "first.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(SCRIPT), "--tiny", str(work)],
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while last_step(work) < SAVED_AT + 2:
        assert process.poll() is None, f"it ended too early:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"no step {SAVED_AT + 2} so far:\n{log.read_text()}"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_step(work: Path) -> int:
    """The last whole line of metrics.jsonl, as its step; 0 before there is one."""
    path = work / "run" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(whole[-1])["step"] if whole else 0


def processes_about(work: Path) -> list[str]:
    """Command lines of processes that name the folder; a few seconds are given to them to end."""
    found: list[str] = []
    for _ in range(50):
        lines = [read_or_nothing(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
        found = [line for line in lines if str(work) in line]
        if not found:
            break
        time.sleep(0.2)
    return found


def read_or_nothing(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def steps_with_loss(work: Path) -> list[int]:
    lines = (work / "run" / "metrics.jsonl").read_text().splitlines()
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def test_a_killed_quickstart_takes_nothing_for_done(story: Story) -> None:
    assert not story.training_was_done
    assert not {"hf-trained", "eval-before", "eval-after", "loss.png"} & story.made_after_kill


def test_a_killed_quickstart_leaves_no_process(story: Story) -> None:
    assert story.left_running == []


def test_started_again_it_gets_through(story: Story) -> None:
    assert story.second.returncode == 0, story.second.stdout + story.second.stderr
    assert story.second.stdout.count("already done") == 5


def test_training_goes_on_from_its_checkpoint(story: Story) -> None:
    assert steps_with_loss(story.work) == list(range(1, STEPS + 1))
    tracker = story.work / "run" / "latest_checkpointed_iteration.txt"
    assert int(tracker.read_text()) == STEPS


def test_the_model_learned(story: Story) -> None:
    lines = story.second.stdout.splitlines()
    told = next(line for line in lines if line.startswith("Perplexity:")).split()
    before, after = float(told[1]), float(told[4])
    # A model with random weights guesses among the whole vocabulary of 8192.
    assert 6000 < before < 12000
    assert after < before / 2


def test_everything_promised_is_there(story: Story) -> None:
    trained = {path.name for path in (story.work / "hf-trained").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= trained
    assert (story.work / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "Try next:" in story.second.stdout


def test_a_finished_quickstart_is_not_run_again(story: Story) -> None:
    assert story.third.returncode == 0
    assert story.third.stdout.count("already done") == 10
