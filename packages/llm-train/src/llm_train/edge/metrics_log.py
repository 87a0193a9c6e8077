"""Where rank 0 puts a run's metrics: metrics.jsonl, the console and TensorBoard."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from llm_train.edge.console import Console
from llm_train.metrics import (
    FILE_NAME,
    EvalMetrics,
    MetricsError,
    StepMetrics,
    keep_until,
    write_line,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_TENSORBOARD_NAMES = {
    "loss": "train/loss",
    "mtp_loss": "train/mtp_loss",
    "indexer_loss": "train/indexer_loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "speed/tokens_per_second",
    "step_time_s": "speed/step_time_s",
    "mfu": "speed/mfu",
    "memory_bytes": "memory/bytes",
    "aux_loss": "moe/aux_loss",
    "seq_aux_loss": "moe/seq_aux_loss",
    "z_loss": "moe/z_loss",
}


class MetricsLog:
    """The open metrics of one run, used as a context manager on rank 0 alone.

    `first_step` is the step the run starts after: 0 for a new run, N for one resumed at N; later
    lines of an older metrics.jsonl are cut off, so that no step appears twice.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        max_steps: int,
        num_devices: int,
        log_every: int = 1,
        tensorboard: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        self._board = _open_tensorboard(folder / "tensorboard", first_step) if tensorboard else None
        cut_after(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._console = Console(
            stream or sys.stderr,
            first_step=first_step,
            max_steps=max_steps,
            num_devices=num_devices,
            log_every=log_every,
        )

    def step(self, metrics: StepMetrics) -> None:
        """Record one optimizer step."""
        self._write(metrics)
        self._console.step(metrics)
        if self._board is not None:
            for field, name in _TENSORBOARD_NAMES.items():
                value = getattr(metrics, field)
                if value is not None:
                    self._board.add_scalar(name, value, metrics.step)

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Record one pass over the validation batches."""
        self._write(metrics)
        self._console.say(
            f"step {metrics.step}: eval loss {metrics.eval_loss:.4f}, "
            f"perplexity {_perplexity(metrics.eval_loss):.2f}"
        )
        if self._board is not None:
            self._board.add_scalar("eval/loss", metrics.eval_loss, metrics.step)

    def say(self, text: str) -> None:
        """Print a line of its own, above the progress bar where there is one."""
        self._console.say(text)

    def _write(self, metrics: StepMetrics | EvalMetrics) -> None:
        self._file.write(write_line(metrics))
        # A line a step is little; a run that is killed keeps every step it told.
        self._file.flush()

    def close(self) -> None:
        """Bring everything to disk and end the progress bar."""
        self._console.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def cut_after(path: Path, step: int) -> None:
    """Rewrite metrics.jsonl at `path` without the lines after `step`, whole or not at all."""
    if not path.exists():
        return
    kept = keep_until(path.read_text(encoding="utf-8"), step, str(path))
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _open_tensorboard(folder: Path, first_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MetricsError(
            "log.tensorboard=true needs the tensorboard package: "
            "pip install 'llm-train[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=first_step + 1)


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
