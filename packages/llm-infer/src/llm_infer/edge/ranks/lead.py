"""Rank 0's side: starts the other ranks, tells them what to do, and ends with them."""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.ranks import joining
from llm_infer.edge.ranks.interrupts import deferred_interrupt
from llm_infer.edge.ranks.messages import Failed, Join, Load, Loaded, Message
from llm_infer.edge.ranks.terminal import Terminal
from llm_infer.engines.tensor_parallel import Command
from llm_infer.errors import InferError
from llm_infer.model.group import Ranks

# A rank that is told to end, or whose end broke a collective, ends within this.
_ENDING_S = 5.0
# After a rank's death those who wait for an answer hear of it; then this process ends.
_GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class _Other:
    rank: int
    process: "subprocess.Popen[bytes]"

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()


class Lead:
    """The other ranks, as processes of this one. When one of them dies, this process ends too.

    They are ended with this process, however it ends.
    """

    def __init__(
        self, size: int, *, device: str, end_process: Callable[[str], None] | None = None
    ) -> None:
        """Start them; `device` is rank 0's, such as `cpu` or `cuda:0`.

        `end_process` is called with the reason when a rank died; the default ends this process.
        """
        self.size, self._device = size, device
        self._end_process = end_process or Terminal().end_process
        self._failure: str | None = None
        self._is_failed, self._is_closing = threading.Event(), False
        self._is_joined = False
        # None from a rank that ended.
        self._answers: Queue[Loaded | None] = Queue()
        joining.share_threads(size)
        self._others = [_started(rank, size) for rank in range(1, size)]
        atexit.register(self.close)
        for other in self._others:
            threading.Thread(target=self._listen, args=(other,), daemon=True).start()

    @property
    def group(self) -> Ranks:
        """All ranks, from rank 0; to be used after `join`."""
        return Ranks(0, self.size)

    def load(self, folder: Path, options: LoadOptions) -> None:
        """Tell all to read their share of the weights; they read while this rank does."""
        self._send(Load(folder.resolve(), options))

    def join(self) -> None:
        """Wait until all have read, and meet them; InferError with the reason of one that fails."""
        for _ in self._others:
            if self._answers.get() is None:
                raise InferError(self._why())
        if not self._is_joined:
            store = joining.new_store(self.size)
            self._send(Join(store.port))
            joining.join(store, rank=0, size=self.size, device=self._device)
            self._is_joined = True

    @contextmanager
    def step(self, command: Command) -> Iterator[None]:
        """See `Others`."""
        with deferred_interrupt():
            if self._failure is not None:
                raise InferError(self._failure)
            try:
                self._send(command)
                yield
            except Exception as error:
                raise InferError(self._why(error)) from error
            except BaseException as error:
                self._why(error)
                raise

    def close(self) -> None:
        """End the other ranks and forget them."""
        self._is_closing = True
        atexit.unregister(self.close)
        joining.leave()
        for other in self._others:
            with suppress(OSError):
                assert other.process.stdin is not None
                other.process.stdin.close()
        deadline_s = time.monotonic() + _ENDING_S
        for other in self._others:
            try:
                other.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                other.process.kill()
                other.process.wait()

    def _send(self, message: Message) -> None:
        data = pickle.dumps(message)
        for other in self._others:
            try:
                other.send(data)
            except OSError:
                raise InferError(self._why()) from None

    def _why(self, error: BaseException | None = None) -> str:
        """What broke the group: a rank that ended, or else what happened here. All are ended."""
        self._is_failed.wait(_ENDING_S)
        if self._failure is None:
            what = f"{type(error).__name__}: {error}" if error is not None else "ended"
            self._fail(f"rank 0 of {self.size}: {what}")
        assert self._failure is not None
        return self._failure

    def _fail(self, failure: str) -> None:
        self._failure = self._failure or failure
        self._is_failed.set()
        for other in self._others:
            other.process.kill()

    def _listen(self, other: _Other) -> None:
        """Hear a rank out. When it ended, so does this process, even from within a collective."""
        reason = None
        while (answer := _answer(other)) is not None:
            if isinstance(answer, Failed):
                reason = answer.reason
            else:
                self._answers.put(answer)
        ending = _ending(other.process.wait())
        if self._is_closing:
            return
        self._fail(f"rank {other.rank} of {self.size}{ending if reason is None else f': {reason}'}")
        self._answers.put(None)
        time.sleep(_GRACE_S)
        if not self._is_closing and self._failure is not None:
            self._end_process(self._failure)


def _started(rank: int, size: int) -> _Other:
    command = [sys.executable, "-m", "llm_infer.edge.ranks.follower"]
    process = subprocess.Popen(
        [*command, str(rank), str(size), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A group of its own: Ctrl-C is for rank 0, which ends them.
        process_group=0,
    )
    return _Other(rank, process)


def _answer(other: _Other) -> Loaded | Failed | None:
    """The next answer; None when there will be none."""
    assert other.process.stdout is not None
    try:
        return pickle.load(other.process.stdout)
    except (EOFError, pickle.UnpicklingError):
        return None


def _ending(code: int) -> str:
    if code >= 0:
        return f" ended with exit code {code}"
    number = signal.Signals(-code)
    hint = " (out of memory?)" if number is signal.SIGKILL else ""
    return f" was ended by {number.name}{hint}"
