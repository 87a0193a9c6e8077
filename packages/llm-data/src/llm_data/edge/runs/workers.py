"""Encoders in other processes: bounded, in order, and gone when their parent is."""

import fcntl
import os
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self, cast

from llm_data.backends.backend import Question, TokenIds
from llm_data.edge.runs import worker_process
from llm_data.edge.runs.worker_process import PARALLEL
from llm_data.encode import EncodedBatch, EncoderSpec
from llm_data.errors import DataError
from llm_data.records import Batch

# Batches a worker may hold: one in hand, the next waiting, one more on the way.
DEPTH = 3

# As much as a user who is not root may ask for.
_PIPE_BYTES = 1 << 20

# Without the working directory on the path of imports.
_PYTHON = (sys.executable, "-P", "-m")


class Crew:
    """So many processes that encode; one means this process. A context: its end ends them."""

    def __init__(self, workers: int, *, modules: Sequence[str] = ()) -> None:
        """`modules` are those an encoder will need: processes load them while they wait."""
        self.workers = workers
        self._modules = modules
        self._hired: list[_Worker] = []
        self._spec: EncoderSpec | None = None

    def start(self) -> None:
        """Let the processes load what they need while there is nothing to encode yet."""
        if self.workers > 1 and not self._hired:
            self._hired = [_Worker(number, self._modules) for number in range(self.workers)]

    def prepare(self, spec: EncoderSpec) -> None:
        """Let the processes build the encoder that will probably be wanted."""
        self.start()
        if spec != self._spec:
            for worker in self._hired:
                worker.send(spec)
            self._spec = spec

    def ask(self, texts: Sequence[str]) -> Sequence[TokenIds]:
        """The ids that a process gives with the encoder it was last told to prepare."""
        self._hired[0].send(Question(tuple(texts)))
        return self._hired[0].answer()

    def encode(
        self, batches: Iterable[Batch], spec: EncoderSpec
    ) -> Generator[EncodedBatch, None, None]:
        """The batches encoded, in the order they came."""
        if self.workers == 1:
            with _single_threaded():
                yield from map(spec.build(), batches)
            return
        self.prepare(spec)
        # Batch i goes to worker i mod n, and comes back from it: order needs no bookkeeping.
        waiting: deque[_Worker] = deque()
        for number, batch in enumerate(batches):
            worker = self._hired[number % self.workers]
            worker.send(batch)
            waiting.append(worker)
            if len(waiting) >= DEPTH * self.workers:
                yield waiting.popleft().receive()
        while waiting:
            yield waiting.popleft().receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._hired:
            self._hired.pop().close()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Keep the tokenizer to one thread, so that `workers` says how many cores are used."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLEL]
        else:
            os.environ[PARALLEL] = before


class _Worker:
    """The parent's end of one process.

    A plain process running one module: unlike `multiprocessing` it does not import the script
    that called us again, so that script needs no guard and the start costs less.
    """

    def __init__(self, number: int, modules: Sequence[str]) -> None:
        self._number = number
        inbox, send = os.pipe()
        receive, outbox = os.pipe()
        # Own group: an interrupt from the keyboard is for the parent, which ends its workers.
        self._process = subprocess.Popen(
            [*_PYTHON, worker_process.__name__, str(inbox), str(outbox), *modules],
            pass_fds=(inbox, outbox),
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        # Only the child may hold these, or neither side would ever see the other one end.
        os.close(inbox)
        os.close(outbox)
        for end in (send, receive):
            _widen(end)
        self._send: Connection[EncoderSpec | Batch | Question] = Connection(send, readable=False)
        self._receive: Connection[object] = Connection(receive, writable=False)

    def send(self, message: EncoderSpec | Batch | Question) -> None:
        try:
            self._send.send(message)
        except (BrokenPipeError, ConnectionResetError):
            # Its own last message, or its silence, says why: see `receive`.
            return

    def receive(self) -> EncodedBatch:
        found = self._next()
        assert isinstance(found, EncodedBatch)
        return found

    def answer(self) -> Sequence[TokenIds]:
        found = self._next()
        assert isinstance(found, list)
        return cast("list[TokenIds]", found)

    def _next(self) -> object:
        try:
            found = self._receive.recv()
        except (EOFError, ConnectionResetError):
            raise DataError(
                f"worker {self._number} ended with exit code {self._process.wait()}"
                " (-9: killed, perhaps for memory); what is done is kept, run again to go on"
            ) from None
        if isinstance(found, DataError):
            raise found
        return found

    def close(self) -> None:
        self._send.close()
        self._receive.close()
        # It may be in the middle of a batch nobody waits for.
        self._process.terminate()
        self._process.wait()


def _widen(pipe: int) -> None:
    """Let a batch pass a pipe at once, where the system can: each part more is a switch between
    processes.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
