"""A run as its user sees it: a progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

from datetime import timedelta
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm_train.metrics import StepMetrics


class Console:
    """Shows the steps after `first_step` up to `max_steps` on `stream`."""

    def __init__(
        self, stream: TextIO, *, first_step: int, max_steps: int, num_devices: int, log_every: int
    ) -> None:
        self._stream = stream
        self._max_steps = max_steps
        self._num_devices, self._log_every = num_devices, log_every
        self._bar = _bar(stream) if stream.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=max_steps, completed=first_step, shown="")
            self._bar.start()

    def step(self, metrics: StepMetrics) -> None:
        """Show one step; off a terminal, only every `log_every`-th and the last."""
        if self._bar is not None:
            shown = step_text(metrics, num_devices=self._num_devices, with_norm=False)
            self._bar.update(self._task, completed=metrics.step, shown=shown)
        elif metrics.step % self._log_every == 0 or metrics.step == self._max_steps:
            self._print_line(metrics)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the bar; the last state of it stays on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _print_line(self, metrics: StepMetrics) -> None:
        left = "" if metrics.eta_s is None else f"  eta {timedelta(seconds=round(metrics.eta_s))}"
        self.say(
            f"step {metrics.step}/{self._max_steps}  "
            f"{step_text(metrics, num_devices=self._num_devices)}  "
            f"{metrics.step_time_s:.3f} s{left}"
        )


def step_text(metrics: StepMetrics, *, num_devices: int, with_norm: bool = True) -> str:
    """Tell one step in a line: loss, learning rate, gradient norm, speed and use of one device."""
    norm = f"grad {metrics.grad_norm:.3f}  " if with_norm and metrics.grad_norm is not None else ""
    skipped = "skipped  " if metrics.skipped else ""
    speed = metrics.tokens_per_second / num_devices
    use = "" if metrics.mfu is None else f"  mfu {100 * metrics.mfu:.1f} %"
    return (
        f"loss {metrics.loss:.4f}  lr {metrics.lr:.2e}  {norm}{skipped}"
        f"{speed:,.0f} tokens/s/device{use}"
    )


def _bar(stream: TextIO) -> Progress:
    console = RichConsole(file=stream)
    return Progress(
        # The numbers must fit into 80 columns; the bar takes what is left.
        BarColumn(bar_width=8 if console.width < 100 else 24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
    )
