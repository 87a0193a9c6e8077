"""Progress of a long step: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_EVERY_S = 10.0


class Progress(Protocol):
    """Something that shows how far a step is."""

    def update(self, *, done: int, total: int, note: str) -> None:
        """`done` of `total` is behind us."""
        ...

    def say(self, text: str) -> None:
        """A line of its own."""
        ...


class Silent:
    """Shows nothing, for use from Python."""

    def update(self, *, done: int, total: int, note: str) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@contextmanager
def terminal_progress(title: str) -> Iterator["Progress"]:
    """A `rich` bar when standard error is a terminal, else plain lines there."""
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(bars, bars.add_task(title, total=None, note=""))


class _Bar:
    def __init__(self, bars: "RichProgress", task: "TaskID") -> None:
        self._bars = bars
        self._task = task

    def update(self, *, done: int, total: int, note: str) -> None:
        self._bars.update(self._task, completed=done, total=total, note=note)

    def say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._last = time.monotonic()

    def update(self, *, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            print(f"{self._title}: {done / max(total, 1):.0%} {note}", file=sys.stderr)  # noqa: T201

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)  # noqa: T201
