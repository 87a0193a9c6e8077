"""The PNG that `bench --plot` writes: how much faster each backend is than the reference."""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from llm_kernels_npu.edge import report_file
from llm_kernels_npu.errors import PackageMissingError
from llm_kernels_npu.timing import Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour and marker, so that a print in grey still tells them apart.
_LOOK: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "reference": ("#6b7280", "|"),
        "torch": ("#c2410c", "o"),
        "triton": ("#1d4ed8", "D"),
        "npu": ("#047857", "s"),
    }
)
_INK = "#1f2937"
_ROW_INCHES = 0.3
_NARROW = 4.0
"""Largest ratio between two speeds at which the scale is marked between the powers of ten."""

Row = tuple[str, str, str]
"""Operator, case and dtype."""


def require_matplotlib() -> None:
    """Raise PackageMissingError where there is nothing to draw with: before minutes of timing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PackageMissingError(
            "bench --plot needs matplotlib: pip install 'llm-kernels-npu[plot]'"
        )


def write(path: Path, timings: Sequence[Timing]) -> None:
    """Draw `speeds(timings)` and write them as a PNG, whole or not at all."""
    report_file.replace(path, draw(timings))


def speeds(timings: Sequence[Timing]) -> dict[Row, dict[str, float]]:
    """By case, each backend's speed as a multiple of the reference's.

    Of forward with backward, or of forward for an operator without gradients. A case that the
    reference was not timed on is left out.
    """
    times: dict[Row, dict[str, float]] = {}
    for timing in timings:
        both = timing.forward_backward_us
        case = times.setdefault((timing.operator, timing.case, timing.dtype), {})
        case[timing.backend] = timing.forward_us if both is None else both
    return {
        row: {backend: case["reference"] / time for backend, time in case.items()}
        for row, case in times.items()
        if "reference" in case
    }


def draw(timings: Sequence[Timing]) -> bytes:
    """A PNG with a row a case, and a mark a backend on a logarithmic scale of speed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = speeds(timings)
    figure = Figure(figsize=(10, 1.6 + _ROW_INCHES * max(len(rows), 1)), dpi=130)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    _draw_rows(axes, rows)
    devices = ", ".join(dict.fromkeys(timing.device for timing in timings))
    axes.set_title(
        f"speed on {devices}, with the backward where there is one", loc="left", color=_INK
    )
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=len(_LOOK), frameon=False, labelcolor=_INK
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_rows(axes: "Axes", rows: Mapping[Row, Mapping[str, float]]) -> None:
    for backend, (colour, marker) in _LOOK.items():
        marks = [(found[backend], y) for y, found in enumerate(rows.values()) if backend in found]
        if marks:
            x, y = zip(*marks, strict=True)
            axes.scatter(x, y, s=42, c=colour, marker=marker, label=backend, zorder=3)
    for y, found in enumerate(rows.values()):
        axes.plot([min(found.values()), max(found.values())], [y, y], color="#d1d5db", zorder=1)
    axes.set_yticks(range(len(rows)), [_label(*row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.axvline(1, color=_LOOK["reference"][0], linewidth=0.8)
    _mark_scale(axes, [speed for found in rows.values() for speed in found.values()])
    axes.set_xlabel("times the reference's speed (more is better)", color=_INK)
    axes.grid(axis="x", which="both", color="#e5e7eb", linewidth=0.6)
    axes.tick_params(which="both", length=0, colors=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _mark_scale(axes: "Axes", found: Sequence[float]) -> None:
    """Ticks as `0.5×`, and few enough of them to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    is_narrow = max(found, default=1.0) / min(found, default=1.0) <= _NARROW
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if is_narrow else (1, 2, 5)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(operator: str, case: str, dtype: str) -> str:
    short = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)
    return f"{operator}  {case}  {short}"
