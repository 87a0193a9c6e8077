"""What the commands print: tables of backends, of differences and of times."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from llm_kernels_npu.cases import bench_cases, check_cases
from llm_kernels_npu.edge import plot_file, report_file
from llm_kernels_npu.edge.device import pick, present
from llm_kernels_npu.parity import TOLERANCE, Result, compare
from llm_kernels_npu.registry import AUTO_ORDER, OPERATORS, operator
from llm_kernels_npu.select import availability, choose
from llm_kernels_npu.timing import Timing, measure

_PIPE_COLUMNS = 140
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def show_backends(device: str) -> None:
    """Operators × backends: `auto` for the one chosen, `yes`, or the reason why not."""
    here = present()
    if device == "auto":
        device = here[0]
    elif device not in AUTO_ORDER:
        device = pick(device)
    names = list(dict.fromkeys(name for order in AUTO_ORDER.values() for name in order))
    table = Table("operator", *names, title=f"backends on {device} (devices here: {_join(here)})")
    for name, entry in OPERATORS.items():
        chosen = choose(name, device=device).backend
        state = {
            backend.name: reason or ("auto" if backend.name == chosen else "yes")
            for backend, reason in availability(name, device=device)
        }
        for backend in entry.backends:
            lacks = sorted(backend.lacks | backend.lacks_dtypes)
            if lacks and state[backend.name] in ("auto", "yes"):
                state[backend.name] += f", no {_join(lacks)}"
        table.add_row(name, *(state.get(column, "none written") for column in names))
    console = _console()
    console.print(table)
    console.print(f"auto on {device}: first usable of {_join(AUTO_ORDER[device])}")
    for name, entry in OPERATORS.items():
        if device in entry.orders:
            console.print(f"  {name}: of {_join(entry.orders[device])}")


def run_check(
    operators: Sequence[str], device: str, dtypes: Sequence[str], *, verbose: bool
) -> bool:
    """Print the largest differences; whether all are within tolerance.

    Differences are relative to the reference's largest value. "refused" counts cases that the
    backend's limits turn away.
    """
    device = pick(device)
    passed = True
    columns = ("operator", "backend", "dtype", "cases", "relative", "allowed", "absolute", "in", "")
    table = Table(*columns, title="largest difference from the reference")
    for name, backend, dtype in _progress(list(_combinations(operators, device, dtypes))):
        results, refusals = _compare_all(name, backend, device=device, dtype=dtype)
        rows = [[result] for result in results] if verbose else [results]
        for group in filter(None, rows):
            table.add_row(*_row(group, refusals=0 if verbose else len(refusals)))
        passed = passed and bool(results) and all(result.passed for result in results)
    _console().print(table)
    return passed


def run_bench(
    operators: Sequence[str],
    device: str,
    dtypes: Sequence[str],
    seconds: float,
    *,
    output: Path | None,
    plot: Path | None,
) -> bool:
    """Print median times of the backends that pass parity; whether all passed.

    `output` is a JSON file of them, `plot` a PNG; what the PNG needs is looked for first.
    """
    device = pick(device)
    if plot is not None:
        plot_file.require_matplotlib()
    table = Table("operator", "backend", "dtype", "case", "forward µs", "with backward µs")
    timings: list[Timing] = []
    failed = False
    dtypes = dtypes or ("float32" if device == "cpu" else "bfloat16",)
    for name, backend, dtype in _progress(list(_combinations(operators, device, dtypes))):
        results, _ = _compare_all(name, backend, device=device, dtype=dtype)
        if not all(result.passed for result in results):
            table.add_row(name, backend, _short(dtype), "not timed: parity failed", "", "")
            failed = True
            continue
        for case in bench_cases(name, device=device):
            timing = measure(name, backend, case, device=device, dtype=dtype, seconds=seconds)
            timings.append(timing)
            both = timing.forward_backward_us
            times = (
                f"{timing.forward_us:,.0f}",
                "no gradients" if both is None else f"{both:,.0f}",
            )
            table.add_row(name, backend, timing.dtype, timing.case, *times)
    _console().print(table)
    for path, write in ((output, report_file.write), (plot, plot_file.write)):
        if path is not None:
            write(path, timings)
            _console().print(f"wrote {path}")
    return not failed


def _combinations(
    operators: Sequence[str], device: str, dtypes: Sequence[str]
) -> Iterator[tuple[str, str, torch.dtype]]:
    for name in operators or OPERATORS:
        operator(name)
        for backend, reason in availability(name, device=device):
            if reason is None:
                for dtype in _DTYPES:
                    is_wanted = not dtypes or _short(dtype) in dtypes
                    if is_wanted and _short(dtype) not in backend.lacks_dtypes:
                        yield name, backend.name, dtype


def _compare_all(
    name: str, backend: str, *, device: str, dtype: torch.dtype
) -> tuple[list[Result], list[str]]:
    results: list[Result] = []
    refusals: list[str] = []
    for case in check_cases(name):
        outcome = compare(name, backend, case, device=device, dtype=dtype)
        if isinstance(outcome, Result):
            results.append(outcome)
        else:
            refusals.append(outcome)
    return results, refusals


def _row(group: Sequence[Result], *, refusals: int) -> tuple[str, ...]:
    worst = max(group, key=lambda result: result.worst.relative)
    found = worst.worst
    cases = worst.case if len(group) == 1 and not refusals else f"{len(group)}"
    if refusals:
        cases += f", {refusals} refused"
    verdict = "ok" if all(result.passed for result in group) else f"FAILED: {worst.case}"
    figures = (f"{found.relative:.1e}", f"{TOLERANCE[worst.dtype]:.0e}", f"{found.absolute:.1e}")
    named = (worst.operator, worst.backend, _short(worst.dtype), cases)
    return (*named, *figures, found.tensor, verdict)


def _progress(
    combinations: list[tuple[str, str, torch.dtype]],
) -> Iterable[tuple[str, str, torch.dtype]]:
    console = Console(stderr=True)
    return track(
        combinations,
        description="operators, backends, dtypes",
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
