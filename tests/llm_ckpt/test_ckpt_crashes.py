"""Killed at every step, out of disk, out of workers: clear errors, and no half results."""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest

from ckpt_models import assert_same_folder
from llm_ckpt.edge import convert as whole
from llm_ckpt.edge import markers, space, workers
from llm_ckpt.edge.convert import RECORD
from llm_ckpt.errors import CheckpointError

# What a conversion does to the disk, in order.
STEPS = ("write", "fsync", "replace", "rename")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and signals")


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }


def in_child(act):
    """Run in a fork; exit code, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:  # noqa: BLE001 - the child must never go on as a second pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def before_each_step(act):
    """Call `act(number)` before each step of this process; the number of steps so far."""
    count = 0

    def wrapped(real):
        def step(*args, **options):
            nonlocal count
            act(count)
            count += 1
            return real(*args, **options)

        return step

    for name in STEPS:
        setattr(os, name, wrapped(getattr(os, name)))
    return lambda: count


def steps_of(act, note):
    """How many steps `act` takes."""

    def counted():
        steps = before_each_step(lambda _: None)
        act()
        note.write_text(str(steps()))

    assert in_child(counted) == 0
    return int(note.read_text())


@pytest.mark.parametrize("layout", ["v1", "v2", "hf"])
def test_kill_9_at_every_step_and_resume_redoes_at_most_one_file(
    layout, hf_folder, convert, tmp_path, monkeypatch
):
    source, out, partial = hf_folder("qwen3"), tmp_path / "out", tmp_path / "out.partial"
    monkeypatch.setattr("llm_ckpt.plan.MAX_DIST_FILE_BYTES", 300_000)
    options = {"v1": {"tp": 2, "pp": 2}, "v2": {}, "hf": {"max_shard_bytes": 300_000}}[layout]
    before = digests(source)
    convert(source, tmp_path / "wanted", layout, **options)
    wanted = digests(tmp_path / "wanted")
    names = [name for name in wanted if name.endswith((".pt", ".distcp", ".safetensors"))]
    names = [name for name in names if "common.pt" not in name and "extra" not in name]
    assert len(names) >= 3
    count = steps_of(lambda: convert(source, out, layout, **options), tmp_path / "count")
    shutil.rmtree(out)
    last = range(count - 8, count)  # where the folder gets its name
    for step in sorted({*range(len(layout), count - 8, 5), *last}):

        def killed(step=step):
            def act(number):
                if number == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            before_each_step(act)
            convert(source, out, layout, **options)

        assert in_child(killed) == -signal.SIGKILL
        assert not out.exists() or digests(out) == wanted
        finished = [name for name in names if (partial / name).is_file()]
        outcome = convert(source, out, layout, is_resumed=True, **options)
        assert outcome.is_already_done or outcome.resumed >= len(finished) - 1
        assert digests(out) == wanted, f"killed before step {step}"
        assert not partial.exists()
        shutil.rmtree(out)
    assert digests(source) == before


def test_a_dead_parent_leaves_no_workers(hf_folder, convert, tmp_path):
    def slow():
        before_each_step(lambda _: time.sleep(0.2))
        convert(hf_folder("qwen3"), tmp_path / "v1", "v1", tp=2, pp=2, workers=2)

    pid = os.fork()
    if pid == 0:
        slow()
        os._exit(0)
    deadline, children = time.monotonic() + 60, []
    while len(children) < 2 and time.monotonic() < deadline:
        children = psutil.Process(pid).children()
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(children) == 2
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, gone


@pytest.mark.parametrize("count", [2, 3])
def test_a_worker_that_dies_ends_the_run_and_the_others(
    count, hf_folder, convert, tmp_path, monkeypatch
):
    real = workers.write_planned

    def dies(source, job, on_bytes):
        if "mp_rank_01_001" in job.file.path:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, job, on_bytes)

    monkeypatch.setattr(workers, "write_planned", dies)
    message = (
        r"writing mp_rank_01_001/model_optim_rng\.pt died: SIGKILL \(out of memory\?\).*--resume"
    )
    with pytest.raises(CheckpointError, match=message):
        convert(hf_folder("qwen3"), tmp_path / "v1", "v1", tp=2, pp=2, workers=count)
    assert not psutil.Process().children()
    assert not (tmp_path / "v1").exists()
    monkeypatch.setattr(workers, "write_planned", real)
    convert(hf_folder("qwen3"), tmp_path / "v1", "v1", tp=2, pp=2, workers=2, is_resumed=True)
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    assert_same_folder(hf_folder("qwen3"), tmp_path / "hf")


def test_an_error_in_a_worker_is_the_same_error(hf_folder, convert, tmp_path):
    folder = shutil.copytree(hf_folder("qwen3"), tmp_path / "hf")
    path = folder / "model.safetensors"

    def cut():
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 100)

    real = whole.plan_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "plan_for", lambda *args: (real(*args), cut())[0])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: ends at byte"):
            convert(folder, tmp_path / "v1", "v1", tp=2, workers=2)
    assert not psutil.Process().children()
    assert not (tmp_path / "v1").exists()


def test_too_little_room_is_refused_with_both_numbers(hf_folder, convert, tmp_path, monkeypatch):
    monkeypatch.setattr(space, "free_bytes", lambda _: 1000)
    with pytest.raises(CheckpointError, match=r"\d{6,} bytes \(.*\) needed, 1000 \(1\.0 kB\) free"):
        convert(hf_folder("qwen3"), tmp_path / "v1", "v1")
    assert list(tmp_path.iterdir()) == []


def full_after(monkeypatch, limit):
    """`os.write` to a file fails once that many bytes are written."""
    real, left = os.write, limit

    def write(descriptor, data):
        nonlocal left
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, data[:left])
        left -= count
        return count

    monkeypatch.setattr(os, "write", write)


def test_a_disk_that_fills_up_names_the_file_and_the_bytes(
    hf_folder, convert, tmp_path, monkeypatch
):
    source, before = hf_folder("qwen3"), digests(hf_folder("qwen3"))
    with monkeypatch.context() as patch:
        full_after(patch, 500_000)
        message = (
            r"v1\.partial/iter_0000001/mp_rank_01/model_optim_rng\.pt: No space left on device "
            r"after \d+ of about \d+ bytes; \d+ bytes are free"
        )
        with pytest.raises(CheckpointError, match=message):
            convert(source, tmp_path / "v1", "v1", tp=2)
    assert not (tmp_path / "v1").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert digests(source) == before
    assert convert(source, tmp_path / "v1", "v1", tp=2, is_resumed=True).resumed == 1


def test_a_full_disk_in_the_writing_thread_is_told(monkeypatch, tmp_path):
    """Larger than a block, so that the error is another thread's."""
    from llm_ckpt.formats.pipeline import BLOCK_BYTES
    from llm_ckpt.formats.stream import NewFile

    full_after(monkeypatch, BLOCK_BYTES + 5)
    message = rf"after {BLOCK_BYTES + 5} of about 99 bytes"
    with NewFile(tmp_path / "x", planned_bytes=99) as file:
        for _ in range(3):
            file.write(bytes(BLOCK_BYTES))
        with pytest.raises(CheckpointError, match=message):
            file.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("count", [1, 2])
def test_a_real_full_disk(count, small_disk, hf_folder, convert, monkeypatch):
    source, before = hf_folder("qwen3"), digests(hf_folder("qwen3"))
    with pytest.raises(CheckpointError, match=r"needed, \d+ \(.*\) free; nothing was written"):
        convert(source, small_disk / "v1", "v1", tp=2, workers=count)
    assert list(small_disk.iterdir()) == []
    # Someone else fills it after the check.
    monkeypatch.setattr(whole, "check_space", lambda *_: None)
    with pytest.raises(CheckpointError, match=r"No space left on device after .*bytes are free"):
        convert(source, small_disk / "v1", "v1", tp=2, workers=count)
    assert [path.name for path in small_disk.iterdir()] in (["v1.partial"], [])
    assert not [path for path in small_disk.rglob("*") if path.name.endswith(".tmp")]
    assert digests(source) == before


def test_sources_are_never_opened_for_writing(hf_folder, convert, tmp_path):
    """Seen by the interpreter's own audit, which cannot be taken off: in a child."""

    def watched():
        source = tmp_path / "source"

        def hook(event, args):
            if event == "open" and isinstance(args[0], str | os.PathLike):
                path, _, flags = args
                is_source = source in Path(path).resolve().parents
                if is_source and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                    os._exit(3)

        sys.addaudithook(hook)
        for layout, previous in (("v1", None), ("v2", "v1"), ("hf", "v2")):
            if previous:
                source = tmp_path / previous
            convert(source, tmp_path / layout, layout)

    shutil.copytree(hf_folder("qwen3"), tmp_path / "source")
    assert in_child(watched) == 0


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8 << 20, (8 << 20) + 1, (24 << 20) + 4097])
def test_files_of_any_length_are_written_whole(size, tmp_path):
    from llm_ckpt.formats.stream import NewFile

    data = os.urandom(size)
    with NewFile(tmp_path / "x") as file:
        for start in range(0, size, 3 << 20):
            file.write(memoryview(data)[start : start + (3 << 20)])
        fact = file.commit()
    assert (tmp_path / "x").read_bytes() == data
    assert (fact.bytes, fact.sha256) == (size, hashlib.sha256(data).hexdigest())


def test_files_not_yet_synced_count_until_the_system_starts_anew(
    hf_folder, convert, tmp_path, monkeypatch
):
    """As after a power cut: what only the page cache had may be gone."""
    source, out = hf_folder("qwen3"), tmp_path / "out"
    convert(source, tmp_path / "wanted", "v1", tp=2, pp=2)

    def stopped_after_two_files():
        monkeypatch.setattr(markers, "sync_file", lambda path: time.sleep(60))
        real, left = whole.write_planned, [2]

        def write(*arguments):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*arguments)

        monkeypatch.setattr(whole, "write_planned", write)
        convert(source, out, "v1", tp=2, pp=2)

    def cut_short():
        torn = sorted((tmp_path / "out.partial" / markers.FOLDER).iterdir())[0]
        torn.write_bytes(b"")

    def starts_anew():
        (tmp_path / "boot").write_text("another")
        monkeypatch.setattr(markers, "BOOT_ID", tmp_path / "boot")

    for happens, resumed in ((lambda: None, 2), (cut_short, 1), (starts_anew, 0)):
        assert in_child(stopped_after_two_files) == -signal.SIGKILL
        happens()
        outcome = convert(source, out, "v1", tp=2, pp=2, is_resumed=True)
        assert outcome.resumed == resumed
        assert digests(out) == digests(tmp_path / "wanted")
        shutil.rmtree(out)


def test_progress_without_a_terminal_tells_speed_and_time_left(monkeypatch, capsys):
    from llm_ckpt.edge import progress

    clock = iter([100.0, 105.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.byte_progress("writing x", 8 * 10**9) as advance:
        advance(10**9)
        advance(10**9)
    line = capsys.readouterr().err.strip()
    assert re.fullmatch(r"writing x: 25 %, 100\.0 MB/s, 0:01:00 left", line)
