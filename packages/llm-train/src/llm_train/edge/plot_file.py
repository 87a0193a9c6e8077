"""Metrics of runs as a PNG and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from llm_train.metrics import FILE_NAME, Curve, MetricsError, read_lines
from llm_train.plot import (
    RunCurves,
    Summary,
    labels,
    run_curves,
    smooth,
    smoothing_window,
    summary,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK, _GRID = "#333333", "#dddddd"
# A gradient norm that spans more than this factor is drawn on a logarithmic axis.
_WIDE_RANGE = 20.0

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #333; max-width: 72rem; margin: 2rem auto; \
padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #ddd; text-align: right; \
font-variant-numeric: tabular-nums; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<table>
<tr><th>run</th><th>steps</th><th>tokens</th><th>first loss</th><th>last loss</th>\
<th>best eval loss</th><th>tokens/s (median)</th></tr>
{rows}
</table>
<img alt="Loss, learning rate, gradient norm and tokens per second over steps" \
src="data:image/png;base64,{image}">
</body>
</html>
"""


def plot_runs(paths: Sequence[Path], *, output: Path | None, html: Path | None) -> list[Path]:
    """Draw the runs at `paths` over one another and return the files written.

    Without `output` and `html`, loss.png goes into the first run's folder.
    """
    files = [_metrics_file(path) for path in paths]
    named = labels([file.parent.resolve().name for file in files], [str(path) for path in paths])
    runs = [_read(file, label) for file, label in zip(files, named, strict=True)]
    if output is None and html is None:
        output = files[0].parent / "loss.png"
    image = draw(runs)
    written: list[Path] = []
    for target, content in ((output, image), (html, page(runs, image).encode())):
        if target is not None:
            _write(target, content)
            written.append(target)
    return written


def draw(runs: Sequence[RunCurves]) -> bytes:
    """Draw the runs as a PNG: loss on top, learning rate, gradient norm and speed below."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MetricsError("plots need matplotlib: pip install 'llm-train[plot]'") from None

    figure = Figure(figsize=(11, 7.5), dpi=130)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.7, 1))
    loss = figure.add_subplot(grid[0, :])
    lr, norm, speed = (figure.add_subplot(grid[1, column]) for column in range(3))
    for run, colour in zip(runs, _cycle(len(runs)), strict=True):
        _draw_loss(loss, run, colour)
        lr.plot(run.lr.steps, run.lr.values, color=colour, linewidth=1.4)
        _draw_both(norm, run.grad_norm, colour)
        _draw_both(speed, run.tokens_per_second, colour)
    _dress(loss, "loss")
    _dress(lr, "learning rate")
    _dress(norm, "gradient norm")
    _dress(speed, "tokens/s")
    lr.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    speed.yaxis.set_major_formatter("{x:,.0f}")
    speed.set_ylim(bottom=0)
    if _is_wide([value for run in runs for value in run.grad_norm.values]):
        norm.set_yscale("log")
    loss.legend(frameon=False, labelcolor=_INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def page(runs: Sequence[RunCurves], image: bytes) -> str:
    """Write the HTML page that holds the drawing and a table of the runs."""
    title = ", ".join(run.label for run in runs)
    return _PAGE.format(
        title=escape(title),
        rows="\n".join(_row(summary(run)) for run in runs),
        image=base64.b64encode(image).decode(),
    )


def _metrics_file(path: Path) -> Path:
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise MetricsError(f"{file}: no such file; wanted a run folder or its {FILE_NAME}")
    return file


def _read(file: Path, label: str) -> RunCurves:
    return run_curves(read_lines(file.read_text(encoding="utf-8"), str(file)), label)


def _draw_loss(axes: Axes, run: RunCurves, colour: str) -> None:
    _draw_both(axes, run.loss, colour, label=run.label)
    if run.eval_loss.steps:
        axes.plot(
            run.eval_loss.steps,
            run.eval_loss.values,
            color=colour,
            linestyle="--",
            linewidth=1,
            marker="o",
            markersize=5,
            markerfacecolor="white",
            label=f"{run.label}, eval",
        )


def _draw_both(axes: Axes, measured: Curve, colour: str, label: str | None = None) -> None:
    """Draw the values thin and pale, and their average over them."""
    window = smoothing_window(len(measured.steps))
    if window > 1:
        axes.plot(measured.steps, measured.values, color=colour, linewidth=0.7, alpha=0.35)
    averaged = smooth(measured.values, window)
    # A dot too, so that a run of a single step can be seen.
    marker = "." if len(measured.steps) < 3 else ""
    axes.plot(measured.steps, averaged, color=colour, linewidth=1.7, marker=marker, label=label)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("step", color=_INK)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.tick_params(colors=_INK)
    axes.margins(x=0.01)
    axes.locator_params(axis="x", integer=True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _is_wide(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) / min(positive) > _WIDE_RANGE


def _cycle(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def _row(run: Summary) -> str:
    cells = (
        escape(run.label),
        f"{run.steps:,}",
        _number(run.tokens, ",.0f"),
        _number(run.loss_first, ".4f"),
        _number(run.loss_last, ".4f"),
        _number(run.eval_loss_best, ".4f"),
        _number(run.tokens_per_second, ",.0f"),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
