"""Runs one step of the quickstart, or finds it done; how long it took and how much memory.

`python step.py --work DIR --name NAME [--after NAME] [--makes PATH...] -- COMMAND...`

PATHs are inside DIR. A step is done when its record in DIR/.steps says so, its command is the
same, what it made is still there, and the step before it has not run again since. A step that
makes nothing but what it prints is never found done. A step that was interrupted
is given to its command again, which goes on from what it had; a step whose command or
starting point has changed begins from nothing.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

SAMPLE_SECONDS = 0.5
# Adding up a process of 1 GB takes the kernel 25 ms: look less often rather than slow it down.
LARGEST_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one step; `run` names one execution, `follows` that of the step before."""

    command: list[str]
    follows: str | None
    run: str
    is_done: bool = False
    seconds: float = 0.0
    peak_bytes: int | None = None

    def is_same_work_as(self, other: "Record") -> bool:
        """Whether both begin from the same point with the same command."""
        return (self.command, self.follows) == (other.command, other.follows)


def main() -> int:
    """Do the step if it is not done; the exit status is the command's."""
    options = parse()
    records = options.work / ".steps"
    before = read(records, options.after) if options.after else None
    wanted = Record(
        command=options.command, follows=before.run if before else None, run=uuid.uuid4().hex
    )
    found = read(records, options.name)
    if found is None or not found.is_same_work_as(wanted):
        remove(options.makes)
        write(records, options.name, wanted)
    elif found.is_done and options.makes and all(path.exists() for path in options.makes):
        print(f"already done ({found.seconds:.0f} s when it ran)", flush=True)
        return 0
    status, seconds, peak = measured(options.command)
    if status != 0:
        print(f"Error: step {options.name} failed with exit status {status}", file=sys.stderr)
        return 1
    missing = [str(path) for path in options.makes if not path.exists()]
    if missing:
        print(f"Error: step {options.name} did not make {', '.join(missing)}", file=sys.stderr)
        return 1
    done = replace(wanted, is_done=True, seconds=seconds, peak_bytes=peak)
    write(records, options.name, done)
    return 0


def parse() -> argparse.Namespace:
    """Read the arguments; everything after `--` is the command."""
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--after")
    parser.add_argument("--makes", nargs="*", default=[])
    options = parser.parse_args(sys.argv[1:split])
    options.makes = [options.work / name for name in options.makes]
    options.command = sys.argv[split + 1 :]
    return options


def read(folder: Path, name: str) -> Record | None:
    """The record of a step, if it ever began."""
    try:
        return Record(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def write(folder: Path, name: str, record: Record) -> None:
    """Store a record; whoever reads it sees the old one or the new one, never half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.tmp"
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / f"{name}.json")


def remove(paths: Iterable[Path]) -> None:
    """Delete what an earlier, different run of this step left."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def measured(command: Sequence[str]) -> tuple[int, float, int]:
    """Run a command; its exit status, seconds, and peak memory of it and all it started.

    The sum over its processes is sampled, and a peak between two samples is missed; the
    largest single process is what the kernel counted, and nothing is missed of that.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal has told the command already
    peak: list[int] = []
    watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
    watcher.start()
    status = process.wait()
    seconds = time.perf_counter() - started
    watcher.join()
    return status, seconds, max([largest_process_bytes(), *peak])


def watch(process: subprocess.Popen[bytes], seen: list[int]) -> None:
    """Sample the memory of a process and its descendants until it ends. Linux only."""
    while process.poll() is None:
        began = time.perf_counter()
        total = sum(proportional_bytes(pid) for pid in descendants(process.pid))
        if total:
            seen[:] = [max([total, *seen])]
        spent = time.perf_counter() - began
        pause = time.monotonic() + max(SAMPLE_SECONDS, spent / LARGEST_SHARE)
        while process.poll() is None and time.monotonic() < pause:
            time.sleep(0.1)


def largest_process_bytes() -> int:
    """Peak memory of the largest process that has ended here (Linux counts in KiB)."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak * 1024 if sys.platform == "linux" else peak


def descendants(root: int) -> list[int]:
    """A process and everything below it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold spaces; the parent is the second field after it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
    family = [root]
    for pid in family:
        family.extend(child for child, parent in parents.items() if parent == pid)
    return family


def proportional_bytes(pid: int) -> int:
    """Memory of one process; pages it shares count in parts (Linux calls it Pss)."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
    return int(kilobytes) * 1024


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
