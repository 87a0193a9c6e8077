"""The quickstart's step runner: nothing half-made is taken for done, nothing done is redone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEP = ROOT / "examples" / "quickstart" / "step.py"
# Appends a line to OUT/log each time it runs, so that a test can count the runs.
WORKER = "import sys, pathlib; out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True); \
open(out / 'log', 'a').write('ran\\n')"


def step(work: Path, name: str, *command: str, after: str | None = None) -> list[str]:
    """The arguments that run one step which makes work/name."""
    chained = ["--after", after] if after else []
    run = command or ("-c", WORKER, str(work / name))
    options = ["--work", str(work), "--name", name, *chained, "--makes", name]
    return [sys.executable, str(STEP), *options, "--", sys.executable, *run]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def runs_of(work: Path, name: str) -> int:
    return len((work / name / "log").read_text().splitlines())


def test_a_finished_step_is_not_run_again(tmp_path: Path) -> None:
    assert run(step(tmp_path, "a")).returncode == 0
    again = run(step(tmp_path, "a"))
    assert again.returncode == 0
    assert "already done" in again.stdout
    assert runs_of(tmp_path, "a") == 1


def test_a_step_whose_output_is_gone_runs_again(tmp_path: Path) -> None:
    run(step(tmp_path, "a"))
    (tmp_path / "a" / "log").unlink()
    (tmp_path / "a").rmdir()
    assert run(step(tmp_path, "a")).returncode == 0
    assert runs_of(tmp_path, "a") == 1


def test_a_changed_command_begins_from_nothing(tmp_path: Path) -> None:
    run(step(tmp_path, "a"))
    run(step(tmp_path, "a", "-c", WORKER, str(tmp_path / "a"), "--changed"))
    assert runs_of(tmp_path, "a") == 1


def test_a_step_after_a_redone_one_begins_from_nothing(tmp_path: Path) -> None:
    run(step(tmp_path, "a"))
    run(step(tmp_path, "b", after="a"))
    (tmp_path / "b" / "kept").touch()
    run(step(tmp_path, "a", "-c", WORKER, str(tmp_path / "a"), "--changed"))
    run(step(tmp_path, "b", after="a"))
    assert not (tmp_path / "b" / "kept").exists()
    assert runs_of(tmp_path, "b") == 1


def test_a_killed_step_is_not_done_and_keeps_what_it_had(tmp_path: Path) -> None:
    code = f"{WORKER}; import time; (out / 'stop').exists() or time.sleep(600)"
    arguments = step(tmp_path, "a", "-c", code, str(tmp_path / "a"))
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "a" / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((tmp_path / ".steps" / "a.json").read_text())["is_done"] is False
    (tmp_path / "a" / "stop").touch()
    assert run(arguments).returncode == 0
    assert runs_of(tmp_path, "a") == 2
    assert "already done" in run(arguments).stdout


def test_a_failing_command_fails_the_step(tmp_path: Path) -> None:
    finished = run(step(tmp_path, "a", "-c", "raise SystemExit(3)"))
    assert finished.returncode == 1
    assert "step a failed with exit status 3" in finished.stderr
    assert "already done" not in run(step(tmp_path, "a", "-c", "raise SystemExit(3)")).stdout


def test_a_command_that_makes_nothing_is_not_taken_for_done(tmp_path: Path) -> None:
    finished = run(step(tmp_path, "a", "-c", "pass"))
    assert finished.returncode == 1
    assert f"did not make {tmp_path / 'a'}" in finished.stderr


def test_the_record_tells_time_and_memory(tmp_path: Path) -> None:
    hold = "import sys, pathlib, time; pathlib.Path(sys.argv[1]).mkdir(); \
block = bytearray(b'x') * 200_000_000; del block; time.sleep(1.2)"
    assert run(step(tmp_path, "a", "-c", hold, str(tmp_path / "a"))).returncode == 0
    record = json.loads((tmp_path / ".steps" / "a.json").read_text())
    assert 1.2 < record["seconds"] < 300
    assert 200_000_000 < record["peak_bytes"] < 400_000_000
