"""Worker processes that write files, and how a process that writes is set up.

A worker is forked where that is safe, so it starts at once with the source already open. It talks
over a pipe of its own: a worker that dies is noticed, and one whose parent died ends at its next
word.
"""

import ctypes
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

import torch

from llm_ckpt.errors import CheckpointError
from llm_ckpt.execute import Job, OnBytes, Written, write_planned
from llm_ckpt.source import WeightSource

_TELL_BYTES = 64 << 20
_END_S = 5.0
# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULTS = ((_M_TRIM_THRESHOLD, 128 << 10), (_M_MMAP_MAX, 65536))
_KEEPING = ((_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_MMAP_MAX, 0))

Opener = Callable[[], WeightSource]
Message = int | Written | Exception


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


@contextmanager
def writing_process() -> Generator[None]:
    """Sets a process up to write: torch has one thread, freed memory is kept for the next tensor.

    Copies are bound by memory, and the cores are for hashing and writing. Memory that goes back to
    the system after each tensor costs more to get again, page by page, than the copies into it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _set_malloc(_KEEPING)
    try:
        yield
    finally:
        _set_malloc(_DEFAULTS)
        torch.set_num_threads(threads)


def write_in_workers(
    source: WeightSource, opener: Opener, jobs: Sequence[Job], *, count: int, on_bytes: OnBytes
) -> Iterator[tuple[Job, Written]]:
    """Write files in `count` processes, largest first; results as they come.

    `source` serves forked workers; others call `opener`. No process outlives this generator.
    """
    pending = sorted(jobs, key=lambda job: job.file.nbytes)  # taken from the end
    workers: list[_Worker] = []
    try:
        for _ in range(min(count, len(jobs))):
            workers.append(_start(source, opener, [worker.pipe for worker in workers]))
        for worker in workers:
            _hand_out(worker, pending)
        while busy := [worker for worker in workers if worker.job]:
            ready = wait([worker.pipe for worker in busy])
            for worker in (worker for worker in busy if worker.pipe in ready):
                job, message = worker.job, _receive(worker)
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, int):
                    on_bytes(message)
                elif job is not None:
                    _hand_out(worker, pending)
                    yield job, message
    finally:
        _end(workers)


def _start(source: WeightSource, opener: Opener, others: Sequence[Connection]) -> _Worker:
    """Forked on Linux; macOS may not fork a process that has used its frameworks."""
    is_forked = sys.platform == "linux"
    context = get_context("fork") if is_forked else get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, source, [ours, *others]) if is_forked else (theirs, opener, [])
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _hand_out(worker: _Worker, pending: list[Job]) -> None:
    worker.job = pending.pop() if pending else None
    if worker.job:
        with suppress(BrokenPipeError):  # it is dead: the next receive says so
            worker.pipe.send(worker.job)


def _receive(worker: _Worker) -> Message:
    try:
        return cast("Message", worker.pipe.recv())
    except (EOFError, ConnectionResetError):
        worker.process.join(_END_S)
        path = worker.job.file.path if worker.job else "no file"
        code = worker.process.exitcode or 0
        reason = f"exit code {code}"
        if code < 0:
            reason = signal.Signals(-code).name
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return CheckpointError(
            f"the worker that was writing {path} died: {reason}{hint}; "
            "finished files are kept: run again with --resume"
        )


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_END_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _serve(pipe: Connection, given: WeightSource | Opener, inherited: Sequence[Connection]) -> None:
    """A worker's life: a job, its progress, its result, until nobody listens.

    A forked worker first closes the parent's ends of all pipes: as long as anyone holds one, nobody
    notices that the parent is gone.
    """
    for connection in inherited:
        connection.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    source = given if isinstance(given, WeightSource) else given()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError), writing_process():
        while True:
            job = cast("Job", pipe.recv())
            try:
                pipe.send(write_planned(source, job, _teller(pipe)))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:  # noqa: BLE001 - the parent is told, and raises it
                pipe.send(error if isinstance(error, CheckpointError | OSError) else _told(error))


def _teller(pipe: Connection) -> OnBytes:
    untold = 0

    def tell(count: int) -> None:
        nonlocal untold
        untold += count
        if untold >= _TELL_BYTES:
            pipe.send(untold)
            untold = 0

    return tell


def _told(error: Exception) -> Exception:
    """An error that surely can be pickled."""
    return RuntimeError(f"{type(error).__name__}: {error}")


def _set_malloc(options: Sequence[tuple[int, int]]) -> None:
    """Sets options of glibc's malloc; other C libraries stay as they are."""
    if sys.platform != "linux":
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option in options:
            mallopt(*option)
