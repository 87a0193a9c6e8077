"""Runs `llm-ckpt` with the given arguments and prints what it took, as JSON on the last line.

The peak of importing torch is forgotten first (clear_refs 5, proc(5)), so `grew_mb` is what the
work itself added to what the process held when it began.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

START = time.perf_counter()


def report(work: Callable[[], None]) -> None:
    """Do the work; print seconds and megabytes."""
    imported = time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mb("VmRSS")
    work()
    seconds, peak = time.perf_counter() - imported, _status_mb("VmHWM")
    facts = {
        "start_s": imported - START,
        "work_s": seconds,
        "start_mb": before,
        "grew_mb": peak - before,
        "peak_mb": peak,
    }
    print(json.dumps(facts))


def _status_mb(key: str) -> float:
    found = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def _llm_ckpt() -> None:
    from llm_ckpt.cli import main

    try:
        main(sys.argv[1:])
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    from llm_ckpt.edge import commands  # noqa: F401 - what every command imports

    report(_llm_ckpt)
