"""One command as a whole: wall time, CPU time and the peak memory of it and all it starts."""

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

_EVERY_S = 0.05


class Run(NamedTuple):
    """`peak_mb` is the largest sum of resident memory, pages that are shared counted in each."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measure(command: Sequence[str | Path], *, environment: Mapping[str, str]) -> Run:
    """Run it to its end; an exit code other than 0 is an error with what it printed."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    output = b""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        wall = time.perf_counter() - start
        output += process.stdout.read() or b""
        if pid:
            break
        peak = max(peak, _resident_bytes(process.pid))
        time.sleep(_EVERY_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}\n{output.decode()}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak / 1e6)


def _resident_bytes(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total
