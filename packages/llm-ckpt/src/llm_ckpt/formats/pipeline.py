"""Blocks of bytes on their way to a file: the caller fills them, threads hash and write them.

Only a few blocks exist, so memory is bounded and a slow disk slows the caller down.
"""

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from zlib import crc32

import numpy as np

BLOCK_BYTES = 8 << 20
_BLOCKS = 4
_SMALL_BYTES = 256 << 10  # not worth the way to another thread

Stage = Callable[[memoryview], object]


class Pipeline:
    """Every block passes the stages in turn, each stage in a thread of its own.

    No thread starts before the first block is full: a small file is finished by its caller.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        self._current = _Block()
        self._free = SimpleQueue["_Block | None"]()
        self._filled = SimpleQueue["_Block | None"]()
        self._spare = _BLOCKS - 1  # blocks that may still be made
        self._threads: list[Thread] = []
        self._errors: list[BaseException] = []
        self._crc = _Crc32()

    def append(self, data: memoryview, *, is_checked: bool = False) -> None:
        """Copy bytes in; raises what a stage raised on earlier ones.

        What is checked counts in `crc32`, which is computed from the copy.
        """
        source, done = np.frombuffer(data, np.uint8), 0
        while done < len(source):
            if self._current.used == BLOCK_BYTES:
                self._next_block()
            start = self._current.used
            done += self._current.fill(source[done:])
            if is_checked:
                self._crc.add(self._current.view()[start:])

    def crc32(self) -> int:
        """The crc of what was checked since the last call."""
        return self._crc.take()

    def finish(self) -> None:
        """Pass the last block on and wait for all; raises what a stage raised."""
        self._crc.close()
        if not self._threads:
            for stage in self._stages:
                stage(self._current.view())
            return
        self._filled.put(self._current)
        self._stop()
        if self._errors:
            raise self._errors[0]

    def abandon(self) -> None:
        """End the threads; blocks on their way go nowhere."""
        self._errors.append(RuntimeError("abandoned"))
        self._crc.close()
        self._stop()

    def _next_block(self) -> None:
        if not self._threads:
            self._start()
        self._filled.put(self._current)
        if self._spare:
            self._spare -= 1
            self._current = _Block()
        else:
            self._current = self._taken()
        if self._errors:
            raise self._errors[0]

    def _taken(self) -> "_Block":
        block = self._free.get()
        if block is None:
            raise RuntimeError("a pipeline that ended gives no blocks")
        self._crc.wait()  # it may still be reading what is to be written over
        block.used = 0
        return block

    def _start(self) -> None:
        queues = [self._filled, *(SimpleQueue["_Block | None"]() for _ in self._stages[1:])]
        ends = [*queues[1:], self._free]
        for stage, source, target in zip(self._stages, queues, ends, strict=True):
            thread = Thread(target=self._run, args=(stage, source, target), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(
        self,
        stage: Stage,
        source: "SimpleQueue[_Block | None]",
        target: "SimpleQueue[_Block | None]",
    ) -> None:
        """One stage's thread: after an error blocks only pass, so that nobody waits for ever."""
        while (block := source.get()) is not None:
            if not self._errors:
                try:
                    stage(block.view())
                except Exception as error:  # noqa: BLE001 - the caller's thread raises it
                    self._errors.append(error)
            target.put(block)
        target.put(None)

    def _stop(self) -> None:
        if self._threads:
            self._filled.put(None)
        while self._threads:
            self._threads.pop().join()


class _Crc32:
    """The crc of memory that is given to it piece by piece, computed in a thread."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None  # begun by the first large piece
        self._last: Future[None] | None = None
        self._value = 0

    def add(self, view: memoryview) -> None:
        """Count these bytes, which may not change before `wait`."""
        if len(view) < _SMALL_BYTES:
            self.wait()
            self._count(view)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        self._last = self._thread.submit(self._count, view)

    def wait(self) -> None:
        """Return when all is counted."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def take(self) -> int:
        """The crc, and begin anew."""
        self.wait()
        value, self._value = self._value, 0
        return value

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _count(self, view: memoryview) -> None:
        self._value = crc32(view, self._value)


class _Block:
    """Memory that is filled from the front."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, BLOCK_BYTES)
        self._array = np.frombuffer(self._memory, np.uint8)
        self.used = 0

    def fill(self, source: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> int:
        """Copy what fits; numpy lets other threads run meanwhile."""
        count = min(len(source), BLOCK_BYTES - self.used)
        np.copyto(self._array[self.used : self.used + count], source[:count])
        self.used += count
        return count

    def view(self) -> memoryview:
        """What is filled."""
        return memoryview(self._memory)[: self.used]
