"""llm-ckpt convert beside `cp`, a converter that loads everything, and itself at other sizes.

Folders are made under --folder and removed at the end. Sources are in the page cache, `cp` is
followed by a sync, as ours ends with one, and who goes first changes each round.

    .venv/bin/python benchmarks/ckpt_convert.py speed --sizes 1 4 8 --rounds 3
    .venv/bin/python benchmarks/ckpt_convert.py whole
    .venv/bin/python benchmarks/ckpt_convert.py workers
    .venv/bin/python benchmarks/ckpt_convert.py giant
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from checkpoints import models

T = TypeVar("T")
HERE = Path(__file__).parent / "checkpoints"
MODELS = {"dense": models.DENSE, "moe": models.MOE}
TO_V1, TO_V2, TO_HF = (
    ("--to", "mcore", "--tp", "2"),
    ("--to", "mcore", "--layout", "v2"),
    ("--to", "hf"),
)

# Of the giant's plans: the first file, which holds the largest tensor, and some in the middle.
SLICES = {"v1": (0, 40), "v2": (0, 1, 300, 301, 302, 303)}


class Run(NamedTuple):
    """One command; MB are the process's own by the kernel, `grew_mb` since its imports."""

    wall_s: float
    cpu_s: float
    work_s: float
    start_mb: float
    grew_mb: float


class Slice(NamedTuple):
    """Some files of a plan: what was printed of them."""

    start_mb: float
    grew_mb: float
    facts: dict[str, float]


class Bench:
    """The folder of models and results."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        folder.mkdir(parents=True, exist_ok=True)
        # As installed programs have it, compiled modules are kept.
        self.environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def model(self, kind: str, size: float) -> Path:
        """The folder of a model, in the page cache."""
        path = self.folder / f"{kind}-{size:g}"
        if not path.is_dir():
            models.sized(MODELS[kind], size, path)
            subprocess.run(["sync"], check=True)
        return path

    def fresh(self, name: str) -> Path:
        """A path with nothing there."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def run(self, script: str, *arguments: object, prefix: Sequence[str] = ()) -> Run:
        """One of our scripts in a process of its own."""
        before, start = _cpu_s(), time.perf_counter()
        facts = json.loads(self._output(script, *arguments, prefix=prefix)[-1])
        wall = time.perf_counter() - start
        return Run(wall, _cpu_s() - before, facts["work_s"], facts["start_mb"], facts["grew_mb"])

    def convert(
        self, source: Path, output: str, options: Sequence[object], prefix: Sequence[str] = ()
    ) -> Run:
        """`llm-ckpt convert`."""
        arguments = ("convert", source, "--output", self.fresh(output), *options)
        return self.run("measured.py", *arguments, prefix=prefix)

    def in_turn(
        self, source: Path, ours: Callable[[], Run], peer: Callable[[], T]
    ) -> tuple[list[Run], list[T]]:
        """Both, every round, the first to go changing; the source in the page cache."""
        mine: list[Run] = []
        other: list[T] = []
        for turn in range(self.rounds):
            _warm(source)
            if turn % 2:
                other.append(peer())
            mine.append(ours())
            if not turn % 2:
                other.append(peer())
        return mine, other

    def slice(self, source: Path, layout: str, numbers: Sequence[int]) -> Slice:
        """A few files of the plan."""
        *_, of_files, of_process = self._output(
            "giant_slice.py", source, self.fresh("slice"), layout, *numbers
        )
        memory = json.loads(of_process)
        return Slice(memory["start_mb"], memory["grew_mb"], json.loads(of_files))

    def _output(self, script: str, *arguments: object, prefix: Sequence[str] = ()) -> list[str]:
        command = [*prefix, sys.executable, str(HERE / script), *map(str, arguments)]
        result = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise SystemExit(f"{command}: exit code {result.returncode}\n{result.stderr}")
        return str(result.stdout).splitlines()

    def copy(self, source: Path) -> float:
        """Seconds of `cp` and a sync of what it wrote."""
        destination = self.fresh("copy")
        start = time.perf_counter()
        subprocess.run(["cp", "-r", source, destination], check=True)
        files = [str(path) for path in destination.rglob("*") if path.is_file()]
        subprocess.run(["sync", *files], check=True)
        seconds = time.perf_counter() - start
        shutil.rmtree(destination)
        return seconds


def speed(bench: Bench, options: argparse.Namespace) -> None:
    """Each direction against `cp` of the same bytes; memory of each."""
    print(
        "| model | GB | direction | ours GB/s | with start | cp GB/s | of cp | with start | "
        "CPU s/GB | start MB | grew MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for kind in options.models:
        for size in options.sizes:
            source = bench.model(kind, size)
            _speed_of(bench, kind, source)
            if not options.keep:
                shutil.rmtree(source)


def _speed_of(bench: Bench, kind: str, source: Path) -> None:
    v1 = bench.folder / "v1"
    directions: tuple[tuple[str, Path, str, Sequence[object]], ...] = (
        ("HF → v1, tp 2", source, "v1", TO_V1),
        ("v1, tp 2 → HF", v1, "hf", TO_HF),
        ("HF → v2", source, "v2", TO_V2),
    )
    for name, origin, output, options in directions:
        ours, copies = bench.in_turn(
            origin,
            partial(bench.convert, origin, output, options),
            partial(bench.copy, origin),
        )
        size = _size(origin) / 1e9
        work, wall = (statistics.median(getattr(r, k) for r in ours) for k in ("work_s", "wall_s"))
        copied, cpu = statistics.median(copies), statistics.median(r.cpu_s for r in ours)
        start, grew = (max(getattr(r, k) for r in ours) for k in ("start_mb", "grew_mb"))
        print(
            f"| {kind} | {size:.1f} | {name} | {size / work:.2f} | {size / wall:.2f} | "
            f"{size / copied:.2f} | {copied / work:.2f} | {copied / wall:.2f} | {cpu / size:.2f} | "
            f"{start:.0f} | {grew:.0f} |",
            flush=True,
        )
    for name in ("v1", "hf", "v2"):
        bench.fresh(name)


def whole(bench: Bench, options: argparse.Namespace) -> None:
    """Against a converter that loads everything, then splits: HF → v1 at tp 2."""
    print("| model | GB | converter | s | with start s | CPU s | grew MB | times | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in options.models:
        source = bench.model(kind, options.size)
        ours, peer = bench.in_turn(
            source,
            partial(bench.convert, source, "v1", TO_V1),
            partial(_load_everything, bench, source),
        )
        medians = [Run(*map(statistics.median, zip(*runs, strict=True))) for runs in (ours, peer)]
        for name, run in zip(("ours", "load everything"), medians, strict=True):
            print(
                f"| {kind} | {_size(source) / 1e9:.1f} | {name} | {run.work_s:.2f} | "
                f"{run.wall_s:.2f} | {run.cpu_s:.2f} | {run.grew_mb:.0f} | "
                f"{medians[1].work_s / run.work_s:.2f} | {run.grew_mb / medians[1].grew_mb:.2f} |",
                flush=True,
            )
        bench.fresh("v1")
        if not options.keep:
            shutil.rmtree(source)


def _load_everything(bench: Bench, source: Path) -> Run:
    return bench.run("whole_peer.py", source, bench.fresh("v1"), 2)


def workers(bench: Bench, options: argparse.Namespace) -> None:
    """Two workers against one: with a core each (taskset), and with all cores for both."""
    source = bench.model("dense", options.size)
    layout = ("--to", "mcore", "--tp", "2", "--pp", "2")
    cases = {
        "1 worker, 1 core": (1, ("taskset", "-c", "0")),
        "2 workers, 2 cores": (2, ("taskset", "-c", "0,1")),
        "1 worker, all cores": (1, ()),
        "2 workers, all cores": (2, ()),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(bench.rounds):
        for name, (count, prefix) in cases.items():
            _warm(source)
            run = bench.convert(source, "v1", (*layout, "--workers", count), prefix)
            found[name].append(run.work_s)
    print("| case | s | times the first |")
    print("|---|---|---|")
    first = statistics.median(found["1 worker, 1 core"])
    for name, times in found.items():
        print(
            f"| {name} | {statistics.median(times):.2f} | {first / statistics.median(times):.2f} |"
        )
    bench.fresh("v1")
    if not options.keep:
        shutil.rmtree(source)


def giant(bench: Bench, options: argparse.Namespace) -> None:
    """DeepSeek-V3's shapes as sparse files: the plans, and a slice of each conversion."""
    source = bench.folder / "deepseek-v3"
    if not source.is_dir():
        models.sparse(models.DEEPSEEK_V3, source)
    print(f"| {_size(source) / 1e9:.0f} GB, sparse | s | CPU s | grew MB |")
    print("|---|---|---|---|")
    pipeline = ("--pp", "16", "--num-layer-list", "3" + ",4" * 14 + ",2")
    layouts = {"v2": TO_V2, "v1": ("--to", "mcore", "--tp", "1", "--ep", "8", *pipeline)}
    for name, layout in layouts.items():
        runs = [bench.run("measured.py", "plan", source, *layout) for _ in range(bench.rounds)]
        median = Run(*map(statistics.median, zip(*runs, strict=True)))
        print(
            f"| plan {name}, start included | {median.wall_s:.2f} | {median.cpu_s:.2f} | "
            f"{median.grew_mb:.0f} |",
            flush=True,
        )
    print("\n| slice | GB of GB | files | s | GB/s | whole, by this speed | start MB | grew MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, numbers in SLICES.items():
        run = bench.slice(source, name, numbers)
        done, total, seconds = run.facts["bytes"], run.facts["total_bytes"], run.facts["write_s"]
        print(
            f"| {name} | {done / 1e9:.1f} of {total / 1e9:.0f} | {len(numbers)} of "
            f"{run.facts['files']:.0f} | {seconds:.1f} | {done / seconds / 1e9:.2f} | "
            f"{total / done * seconds / 60:.0f} min | {run.start_mb:.0f} | {run.grew_mb:.0f} |",
            flush=True,
        )
    bench.fresh("slice")
    if not options.keep:
        shutil.rmtree(source)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="speed", choices=sorted(BENCHES))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench-ckpt"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.0], help="GB, for speed")
    parser.add_argument("--size", type=float, default=4.0, help="GB, for whole and workers")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--keep", action="store_true", help="keep the models made")
    options = parser.parse_args()
    BENCHES[options.what](Bench(options.folder, options.rounds), options)


def _warm(folder: Path) -> None:
    """Read the files once, so that they come from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(64 << 20):
                    pass


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


BENCHES = {"speed": speed, "whole": whole, "workers": workers, "giant": giant}


if __name__ == "__main__":
    main()
