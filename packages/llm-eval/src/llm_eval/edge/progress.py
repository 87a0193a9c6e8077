"""Progress on stderr: a bar on a terminal, else a line every now and then."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_EVERY_S = 15.0


class Progress:
    """Counts up to `total`; use as a context manager."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._done = 0
        self._last_line_s = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._bar.add_task(self._label, total=self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: int) -> None:
        """`amount` more are done."""
        self._done += amount
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], amount)
        elif time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            print(f"{self._label}: {self._done}/{self._total}", file=sys.stderr)  # noqa: T201

    def grow(self, total: int) -> None:
        """There are `total` in all by now."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)


class Reporter:
    """Progress of several stages, one after another; use as a context manager."""

    def __init__(self) -> None:
        self._label: str | None = None
        self._progress: Progress | None = None
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, label: str, done: int, total: int) -> None:
        """`done` of `total` are done in the stage `label`; both only grow in a stage."""
        if self._label != label or self._progress is None:
            self._close()
            self._label, self._done = label, 0
            self._progress = Progress(label, total).__enter__()
        self._progress.grow(total)
        if done > self._done:
            self._progress.advance(done - self._done)
            self._done = done

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
