"""The ranks of one machine, started, watched and ended together by one launcher."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from llm_train.edge import guard, rank_error
from llm_train.edge.rank_error import ERROR_FILE_VARIABLE, RankError, RunFailedError

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_POLL_S = 0.05
_MASTER_PORTS = (20_000, 32_000)
_TAIL_BYTES = 8192
_TAIL_LINES = 25


@dataclass(slots=True)
class _Rank:
    index: int
    process: subprocess.Popen[bytes]
    log: Path | None
    log_start: int
    error_file: Path
    ended_s: float | None = None

    @property
    def signalled(self) -> bool:
        return self.process.returncode is not None and self.process.returncode < 0


@dataclass(slots=True)
class _Stop:
    """Why and until when the ranks are being ended.

    `asked` are the signals the launcher got, of which `handled` were passed on; `failed` the ranks
    that had failed when the others were first told to end.
    """

    asked: list[int] = field(default_factory=list[int])
    handled: int = 0
    failed: list[_Rank] = field(default_factory=list[_Rank])
    deadline_s: float = math.inf


def run_local(
    command: Sequence[str],
    *,
    nproc: int,
    log_folder: Path,
    grace_s: float = 5.0,
    save_grace_s: float = 600.0,
) -> None:
    """Run `command` as `nproc` ranks of this machine and return when all of them succeeded.

    Rank 0 writes where the launcher writes; rank N to `log_folder`/rank_N.log. When a rank fails,
    the others get SIGTERM, and SIGKILL `grace_s` later. SIGINT, SIGTERM, SIGHUP and SIGUSR1 are
    passed on once, after which the ranks have `save_grace_s` to end; a second one ends them at
    once. Ranks that then all end well have saved. Raises RunFailedError with the error of the rank
    that failed first.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    stop = _Stop()
    with _signals(stop.asked), _guard() as watch:
        ranks: list[_Rank] = []
        try:
            port = free_port()
            for index in range(nproc):
                ranks.append(_start(command, index, nproc, port, log_folder))
                watch(ranks[-1].process.pid)
            _supervise(ranks, stop, grace_s=grace_s, save_grace_s=save_grace_s)
        finally:
            _kill(ranks)
    _raise_failure(ranks, stop)


def rank_variables(
    index: int, nproc: int, port: int, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that torch.distributed and the threads of one rank read."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", str(max(1, (cores or 1) // nproc))),
    }


def _start(command: Sequence[str], index: int, nproc: int, port: int, folder: Path) -> _Rank:
    error_file = folder / f"rank_{index}.error"
    error_file.unlink(missing_ok=True)
    variables = {
        **rank_variables(index, nproc, port, os.environ),
        ERROR_FILE_VARIABLE: str(error_file),
    }
    log = None if index == 0 else folder / f"rank_{index}.log"
    start, output = (0, None) if log is None else _open_log(log)
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Its own group: a signal to it reaches its workers, a Ctrl-C only us.
            process_group=0,
        )
    finally:
        if output is not None:
            output.close()
    return _Rank(index, process, log, start, error_file)


def _open_log(path: Path) -> tuple[int, BinaryIO]:
    file = path.open("ab")
    file.write(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    file.flush()
    return file.tell(), file


def free_port() -> int:
    """A port nothing listens on, below those the system hands out to connections by itself.

    Chosen by the system's randomness: two runs with one seed would choose the same.
    """
    choose = random.SystemRandom()
    while True:
        port = choose.randrange(*_MASTER_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port


def _supervise(ranks: Sequence[_Rank], stop: _Stop, *, grace_s: float, save_grace_s: float) -> None:
    """Wait for every rank; pass signals on; end all soon after one fails."""
    while running := [rank for rank in ranks if _is_running(rank)]:
        now_s = time.monotonic()
        for number in stop.asked[stop.handled :]:
            _send(running, signal.Signals(number))
            stop.deadline_s = now_s + (save_grace_s if stop.handled == 0 else 0.0)
            stop.handled += 1
        if not stop.failed and (failed := _failed(ranks)):
            stop.failed = failed
            stop.deadline_s = min(stop.deadline_s, now_s + grace_s)
            if not stop.asked:
                _send(running, signal.SIGTERM)
        if now_s >= stop.deadline_s:
            _kill(ranks)
        time.sleep(_POLL_S)
    stop.failed = stop.failed or _failed(ranks)


def _failed(ranks: Sequence[_Rank]) -> list[_Rank]:
    return [rank for rank in ranks if rank.process.returncode]


def _is_running(rank: _Rank) -> bool:
    if rank.process.poll() is None:
        return True
    if rank.ended_s is None:
        rank.ended_s = time.time()
    return False


def _send(ranks: Sequence[_Rank], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.send_signal(number)


def _kill(ranks: Sequence[_Rank]) -> None:
    """Kill each rank's whole group, also the workers of a rank that has ended by itself."""
    for rank in ranks:
        try:
            os.killpg(rank.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    for rank in ranks:
        rank.process.wait()


@contextmanager
def _signals(asked: list[int]) -> Iterator[None]:
    """Note the signals that mean stop in `asked`, instead of acting on them."""

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)

    before = {number: signal.signal(number, note) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _guard() -> Iterator[Callable[[int], None]]:
    """Keep a process that ends the groups it is told of, should this one die of SIGKILL."""
    command = [sys.executable, "-I", "-S", str(Path(guard.__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as process:
        pipe = process.stdin
        assert pipe is not None

        def watch(group: int) -> None:
            pipe.write(f"{group}\n".encode())
            pipe.flush()

        try:
            yield watch
        finally:
            # All groups are gone: there is nothing left for it to end.
            process.kill()
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # a progress bar that was killed hid the cursor


def _raise_failure(ranks: Sequence[_Rank], stop: _Stop) -> None:
    errors = {rank.index: rank_error.read(rank.error_file) for rank in ranks}
    if stop.asked and _failed(ranks) and not any(errors.values()):
        name = signal.Signals(stop.asked[0]).name
        raise RunFailedError(f"stopped by {name}; all {len(ranks)} ranks have ended")
    if stop.failed:
        known = {rank.index for rank in stop.failed}
        order = {
            rank.index: _order(rank, errors[rank.index], rank.index in known) for rank in ranks
        }
        failed = sorted(_failed(ranks), key=lambda rank: order[rank.index])
        raise RunFailedError(_report(failed, errors[failed[0].index], len(ranks)))


def _order(rank: _Rank, error: RankError | None, ended_by_itself: bool) -> tuple[int, float]:
    """Sort causes before consequences, and both before the ranks that we ended.

    A process killed from outside could not note when, and the others notice before we do: it goes
    first. An abort is often a communication library's answer to the death of another rank.
    """
    if error is not None:
        return 1, error.time_s
    ended_s = rank.ended_s or math.inf
    if not ended_by_itself:
        return 2, ended_s
    return int(not rank.signalled or rank.process.returncode == -signal.SIGABRT), ended_s


def _report(failed: Sequence[_Rank], error: RankError | None, nproc: int) -> str:
    """Tell what the rank that failed first said, then in a line what became of the others."""
    first, *rest = failed
    lines = [f"rank {first.index} of {nproc} failed first: {_ending(first)}"]
    text = error.text if error is not None else _tail(first)
    if text:
        lines.append(text.rstrip())
    if first.log is not None:
        lines.append(f"its log: {first.log}")
    if rest:
        others = ", ".join(f"rank {rank.index} ({_ending(rank)})" for rank in rest)
        lines.append(f"then ended: {others}")
    return "\n".join(lines)


def _ending(rank: _Rank) -> str:
    if not rank.signalled:
        return f"exit code {rank.process.returncode}"
    number = signal.Signals(-rank.process.returncode)
    hint = " (out of memory?)" if number is signal.SIGKILL else ""
    return f"ended by {number.name}{hint}"


def _tail(rank: _Rank) -> str:
    if rank.log is None:
        return ""
    with rank.log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(rank.log_start, file.tell() - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
