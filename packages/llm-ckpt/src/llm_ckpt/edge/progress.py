"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import click

from llm_ckpt.edge.show import human

_LINE_EVERY_S = 10.0


@contextmanager
def byte_progress(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with each number of bytes done."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        numbers = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        columns = ("{task.description}", BarColumn(), *numbers)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(label, total=total_bytes)
            yield lambda count: progress.advance(task, count)
        return
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done, now = done + count, time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            click.echo(progress_line(label, done, total_bytes, now - start), err=True)

    yield advance


def progress_line(label: str, done: int, total: int, seconds: float) -> str:
    """How far, how fast and how long still."""
    speed = done / seconds if done else 1.0
    left = timedelta(seconds=round((total - done) / speed))
    return f"{label}: {100 * done / max(1, total):.0f} %, {human(round(speed))}/s, {left} left"
