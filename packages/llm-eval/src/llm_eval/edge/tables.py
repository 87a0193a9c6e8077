"""Results and comparisons as tables on stdout."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from llm_eval.comparison import Interval, Row

_STYLES = {"better": "green", "worse": "red", "same": "dim", "changed": ""}


def print_results(results: Mapping[str, object]) -> None:
    """One line per task and metric, with its standard error where there is one."""
    table = _table("task", "metric", "value", "± stderr")
    tasks = results.get("results")
    for task, metrics in tasks.items() if isinstance(tasks, Mapping) else ():
        for key, value in metrics.items():
            name, _, kind = key.partition(",")
            if kind and not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr,{kind}")
                shown = name if kind == "none" else key
                table.add_row(task, shown, _number(value), _number(error, missing=""))
    _print(table)


def print_comparison(rows: Sequence[Row], *, before: str, after: str) -> None:
    """One line per metric both runs have; `?` marks a difference that may be chance."""
    table = _table("task", "metric", before, after, "difference", "95 % interval", "ratio", "")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.4f}"
        difference = "" if row.difference is None else f"{row.difference:+.6g}"
        table.add_row(
            row.task,
            row.metric,
            _number(row.before),
            _number(row.after),
            difference,
            _interval(row.interval),
            ratio,
            _verdict(row),
            style=_STYLES[row.verdict] if _is_sure(row) else "dim",
        )
    _print(table)


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    mark = " paired" if interval.is_paired else ""
    return f"{interval.low:+.4g} … {interval.high:+.4g}{mark}"


def _is_sure(row: Row) -> bool:
    return row.interval is None or row.interval.excludes_zero


def _verdict(row: Row) -> str:
    if row.verdict in ("better", "worse") and not _is_sure(row):
        return f"{row.verdict}?"
    return row.verdict


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in ("task", "metric", "") else "right")
    return table


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: give the table what it needs
        console = Console(width=200)
    console.print(table)


def _number(value: object, *, missing: str = "overflow") -> str:
    if isinstance(value, int | float):
        return f"{value:.6g}"
    return missing if value is None else str(value)
