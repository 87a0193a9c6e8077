"""The launcher against ranks that fail, hang, ignore signals or leave workers behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llm_train.edge.launch import rank_variables, run_local
from llm_train.edge.rank_error import RunFailedError

# Each rank notes its process id, and that of a worker it starts, in the folder it is given.
RANK = """
import os, signal, subprocess, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
(folder / f"pid_{rank}").write_text(str(os.getpid()))
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
"""


def command(folder: Path, body: str) -> list[str]:
    return [sys.executable, "-c", RANK + textwrap.dedent(body), str(folder)]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def pids(folder: Path) -> list[int]:
    # A file may be seen between its creation and its first byte.
    return [int(text) for file in folder.glob("pid_*") if (text := file.read_text())]


def wait_until(condition, timeout_s: float = 60.0) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return bool(condition())


def launch(folder: Path, body: str, *, nproc: int = 2, grace_s: float = 1.0) -> None:
    run_local(command(folder, body), nproc=nproc, log_folder=folder / "logs", grace_s=grace_s)


def test_every_rank_gets_its_place_and_its_share_of_the_cores(tmp_path):
    launch(
        tmp_path,
        """
        names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR".split()
        (folder / f"seen_{rank}").write_text(" ".join(os.environ[name] for name in names))
        """,
        nproc=3,
    )
    seen = [(tmp_path / f"seen_{rank}").read_text() for rank in range(3)]
    assert seen == ["0 0 3 127.0.0.1", "1 1 3 127.0.0.1", "2 2 3 127.0.0.1"]


def test_threads_are_shared_out_unless_the_user_set_them():
    cores = len(os.sched_getaffinity(0))
    assert rank_variables(0, cores, 1, {})["OMP_NUM_THREADS"] == "1"
    assert rank_variables(0, 10 * cores, 1, {})["OMP_NUM_THREADS"] == "1"
    assert rank_variables(0, 1, 1, {})["OMP_NUM_THREADS"] == str(cores)
    assert rank_variables(0, 1, 1, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_output_of_rank_0_passes_through_and_others_go_to_logs(tmp_path, capfd):
    launch(tmp_path, "print('words of rank', rank, flush=True)")
    assert capfd.readouterr().out == "words of rank 0\n"
    assert (tmp_path / "logs/rank_1.log").read_text().endswith("words of rank 1\n")


def test_a_dead_rank_ends_the_others_and_its_error_comes_first(tmp_path):
    started_s = time.monotonic()
    with pytest.raises(RunFailedError) as caught:
        launch(
            tmp_path,
            """
            if rank == 1:
                wait_for("pid_0"), wait_for("pid_2")
                raise ArithmeticError("the sum of all fears")
            time.sleep(300)
            """,
            nproc=3,
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "rank 1 of 3 failed first: exit code 1"
    assert "ArithmeticError: the sum of all fears" in lines
    assert f"its log: {tmp_path}/logs/rank_1.log" in lines
    assert lines[-1] == "then ended: rank 0 (ended by SIGTERM), rank 2 (ended by SIGTERM)"
    assert time.monotonic() - started_s < 120  # the ranks would sleep for 300
    assert not any(is_alive(pid) for pid in pids(tmp_path))


def test_the_cause_is_told_before_a_consequence_that_was_seen_earlier(tmp_path):
    """Rank 1 fails, and takes its time to die; rank 0 loses its connection and is gone at once."""
    body = """
    from llm_train.edge.rank_error import reported_errors
    if rank == 0:
        wait_for("failed")
        with reported_errors():
            raise ConnectionError("connection closed by peer")
    from llm_train.edge import rank_error
    path = Path(os.environ["LLM_TRAIN_ERROR_FILE"])
    rank_error.write(path, rank_error.RankError(time_s=time.time(), text="Error: the cause"))
    (folder / "failed").touch()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(0.4)
    sys.exit(1)
    """
    with pytest.raises(RunFailedError) as caught:
        launch(tmp_path, body, grace_s=5.0)
    assert str(caught.value).splitlines()[:2] == [
        "rank 1 of 2 failed first: exit code 1",
        "Error: the cause",
    ]


def test_a_killed_rank_is_the_cause_although_another_wrote_its_error_first(tmp_path):
    body = """
    from llm_train.edge.rank_error import reported_errors
    if rank == 1:
        wait_for("ready")
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "ready").touch()
    wait_for("pid_1")
    with reported_errors():
        other = Path("/proc", (folder / "pid_1").read_text(), "stat")
        while other.read_text().split()[2] != "Z":
            pass
        raise ConnectionError("connection closed by peer")
    """
    with pytest.raises(RunFailedError) as caught:
        launch(tmp_path, body)
    first = str(caught.value).splitlines()[0]
    assert first == "rank 1 of 2 failed first: ended by SIGKILL (out of memory?)"


def test_a_rank_that_ignores_sigterm_is_killed_with_its_workers(tmp_path):
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (folder / f"pid_worker_{rank}").write_text(str(worker.pid))
    if rank == 0:
        wait_for("pid_worker_1")
        sys.exit(3)
    time.sleep(300)
    """
    started_s = time.monotonic()
    with pytest.raises(RunFailedError, match="rank 0 of 2 failed first: exit code 3"):
        launch(tmp_path, body, grace_s=0.5)
    assert time.monotonic() - started_s < 120  # the ranks would sleep for 300
    assert len(pids(tmp_path)) == 4
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


LAUNCHER = """
import sys
from pathlib import Path
from llm_train.edge.launch import run_local
run_local(sys.argv[2:], nproc=2, log_folder=Path(sys.argv[1]) / "logs", grace_s=1.0)
"""


@pytest.fixture
def start_launcher(tmp_path):
    started: list[subprocess.Popen[str]] = []

    def start(body: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(tmp_path), *command(tmp_path, body)],
            stderr=subprocess.PIPE,
            text=True,
            # A group of its own, as a shell gives a command: Ctrl-C goes to all of it.
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_once_and_waits_for_them_to_save(
    tmp_path, start_launcher, number
):
    body = f"""
    got = []
    signal.signal({int(number)}, lambda *_: got.append(1))
    (folder / f"pid_{{rank}}").write_text(str(os.getpid()))
    (folder / f"ready_{{rank}}").touch()
    while not got:
        time.sleep(0.01)
    time.sleep(1.5)
    (folder / f"saved_{{rank}}").write_text(str(len(got)))
    """
    process = start_launcher(body)
    assert wait_until(lambda: len(list(tmp_path.glob("ready_*"))) == 2)
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == 0  # all of them ended well: they have saved
    # Longer than grace_s, which is for ranks that hang after another died.
    assert [(tmp_path / f"saved_{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


def test_a_second_interrupt_does_not_wait(tmp_path, start_launcher):
    body = """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (folder / f"ready_{rank}").touch()
    time.sleep(300)
    """
    process = start_launcher(body)
    assert wait_until(lambda: len(list(tmp_path.glob("ready_*"))) == 2)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


def test_nothing_is_left_when_the_launcher_itself_is_killed(tmp_path, start_launcher):
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (folder / f"pid_worker_{rank}").write_text(str(worker.pid))
    time.sleep(300)
    """
    process = start_launcher(body)
    assert wait_until(lambda: len(pids(tmp_path)) == 4)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


def test_an_error_of_an_earlier_launch_is_not_told_again(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank_0.error").write_text('{"time_s": 1.0, "text": "of yesterday"}')
    with pytest.raises(RunFailedError) as caught:
        launch(tmp_path, "sys.exit(1)", nproc=1)
    assert "yesterday" not in str(caught.value)
