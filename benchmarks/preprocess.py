"""llm-data preprocess beside a pool that takes a document at a time: time, memory, start.

Text and tokenizer are made under --folder at the first call. English is what the installed
packages say of themselves, and the texts under --english; Chinese the texts under --chinese.

    .venv/bin/python benchmarks/preprocess.py speed --chinese FOLDER --rounds 3
    .venv/bin/python benchmarks/preprocess.py memory
    .venv/bin/python benchmarks/preprocess.py startup
"""

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from preprocessing.corpora import (
    docstrings,
    documents,
    files_under,
    train_tokenizer,
    varied,
    write_lines,
)
from preprocessing.process_tree import Run, measure

BIN = Path(sys.executable).parent
PEER = Path(__file__).parent / "preprocessing/pool_peer.py"
WORKERS = 2
# (language, backend): how many times faster than the peer ours must be, by wall time.
BARS = {
    ("english", "gigatoken"): 20.0,
    ("english", "hf"): 1.2,
    ("chinese", "gigatoken"): 5.0,
    ("chinese", "hf"): 1.2,
}
MEMORY_SIZES_MB = (200, 2000)
MEMORY_BAR_MB, MEMORY_RATIO_BAR = 400, 1.1
START_BAR_S = 0.7


class Bench:
    """The folder of texts, tokenizer and results, and how commands are run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder: Path = options.folder
        self.rounds: int = options.rounds
        self.folder.mkdir(parents=True, exist_ok=True)
        # As installed programs have it, compiled modules are kept; not every machine's
        # environment lets them.
        self.environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(self.folder / "compiled")}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.corpora = self._corpora(options)
        self.tokenizer = self.folder / "tokenizer"
        if not self.tokenizer.is_dir():
            train_tokenizer(self.tokenizer, self.corpora.values())

    def _corpora(self, options: argparse.Namespace) -> dict[str, Path]:
        found = {name: self.folder / f"{name}.jsonl" for name in ("english", "chinese")}
        if not found["english"].exists():
            texts = (
                text for source in (docstrings(), files_under(options.english)) for text in source
            )
            write_lines(found["english"], documents(texts, chinese=False))
        if not found["chinese"].exists() and options.chinese:
            write_lines(found["chinese"], documents(files_under(options.chinese), chinese=True))
        return {name: file for name, file in found.items() if file.exists()}

    def ours(
        self, corpus: Path, *, backend: str, workers: int = WORKERS, tokenizer: Path | None = None
    ) -> Run:
        """One run of llm-data into an empty folder."""
        out = self.folder / f"ours-{backend}"
        shutil.rmtree(out, ignore_errors=True)
        command = [
            *(BIN / "llm-data", "preprocess", corpus, "--tokenizer", tokenizer or self.tokenizer),
            *("--output", out / "x", "--append-eod", "--dtype", "int32"),
            *("--workers", str(workers), "--tokenizer-backend", backend),
        ]
        return measure(command, environment=self.environment)

    def peer(self, corpus: Path) -> Run:
        """One run of the pool into an empty folder."""
        out = self.folder / "peer"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        command = [
            sys.executable,
            PEER,
            corpus,
            self.tokenizer,
            out / "x",
            "--workers",
            str(WORKERS),
        ]
        return measure(command, environment=self.environment)

    def check_same(self, backend: str) -> None:
        """Ours and the peer's files are equal, byte for byte."""
        for end in (".bin", ".idx"):
            ours = self.folder / f"ours-{backend}/x_text_document{end}"
            theirs = self.folder / f"peer/x{end}"
            if ours.read_bytes() != theirs.read_bytes():
                raise SystemExit(f"{ours} and {theirs} differ: no figure counts")


def speed(bench: Bench) -> None:
    """Ours with each backend and the peer, in turn, on whole corpora and on one document."""
    one = bench.folder / "one.jsonl"
    if "chinese" not in bench.corpora:
        print("chinese: left out; --chinese FOLDER names its texts")
    for language, corpus in bench.corpora.items():
        one.write_bytes(corpus.open("rb").readline())
        calls: dict[str, Callable[[Path], Run]] = {
            "peer": bench.peer,
            "gigatoken": lambda file: bench.ours(file, backend="gigatoken"),
            "hf": lambda file: bench.ours(file, backend="hf"),
        }
        for call in calls.values():
            call(one)
        starts = {
            name: median([call(one) for _ in range(bench.rounds)]) for name, call in calls.items()
        }
        runs: dict[str, list[Run]] = {name: [] for name in calls}
        for _ in range(bench.rounds):
            for name, call in calls.items():
                runs[name].append(call(corpus))
            for backend in ("gigatoken", "hf"):
                bench.check_same(backend)
        _print_speed(language, corpus, starts=starts, runs=runs)


def _print_speed(
    language: str, corpus: Path, *, starts: dict[str, Run], runs: dict[str, list[Run]]
) -> None:
    size = corpus.stat().st_size / 1e6
    print(
        f"\n{language}: {size:.0f} MB, {WORKERS} workers, the same bytes; "
        f"medians of {len(runs['peer'])}"
    )
    print(
        "| run | wall s (each) | CPU s | peak MB | wall ratio | CPU ratio | past the start | bar |"
    )
    print("|---|---|---|---|---|---|---|---|")
    peer, peer_start = median(runs["peer"]), starts["peer"]
    for name, every in runs.items():
        found = median(every)
        walls = ", ".join(f"{run.wall_s:.1f}" for run in every)
        ratios = [
            theirs.wall_s / ours.wall_s for theirs, ours in zip(runs["peer"], every, strict=True)
        ]
        ratio = statistics.median(ratios)
        past = (peer.cpu_s - peer_start.cpu_s) / (found.cpu_s - starts[name].cpu_s)
        bar = BARS.get((language, name))
        verdict = "" if bar is None else f"≥ {bar:g}: {'met' if ratio >= bar else 'missed'}"
        print(
            f"| {name} | {found.wall_s:.2f} ({walls}) | {found.cpu_s:.1f} | {found.peak_mb:.0f} "
            f"| {ratio:.1f} | {peer.cpu_s / found.cpu_s:.1f} | {past:.1f} | {verdict} |"
        )
    told = ", ".join(f"{name} {run.wall_s:.2f} s" for name, run in starts.items())
    print(f"One document alone: {told}. Past the start: CPU ratio without that.")


def memory(bench: Bench) -> None:
    """Peak of the whole process tree for a small and a large input of ever-new words."""
    print(f"\n| input MB | {WORKERS} workers: peak MB (each) | wall s | MB/s |\n|---|---|---|---|")
    peaks: list[float] = []
    for size in MEMORY_SIZES_MB:
        corpus = bench.folder / f"varied-{size}.jsonl"
        if not corpus.exists():
            texts = varied(bench.corpora["english"], seed=size)
            write_lines(corpus, texts, most_bytes=size * 1_000_000)
        runs = [bench.ours(corpus, backend="gigatoken") for _ in range(bench.rounds)]
        peaks.append(statistics.median(run.peak_mb for run in runs))
        each = ", ".join(f"{run.peak_mb:.0f}" for run in runs)
        wall = median(runs).wall_s
        print(f"| {size} | {peaks[-1]:.0f} ({each}) | {wall:.1f} | {size / wall:.0f} |")
    ratio = peaks[-1] / peaks[0]
    met = ratio <= MEMORY_RATIO_BAR and peaks[-1] <= MEMORY_BAR_MB
    bar = f"≤ {MEMORY_RATIO_BAR} and ≤ {MEMORY_BAR_MB} MB: {'met' if met else 'missed'}"
    print(f"ratio {ratio:.2f} ({bar})")


def startup(bench: Bench) -> None:
    """Whole runs of one document: an upper bound of the time to the first record."""
    small = bench.folder / "tokenizer-8k"
    one = bench.folder / "one.jsonl"
    one.write_bytes(bench.corpora["english"].open("rb").readline())
    if not small.is_dir():
        command = [
            *(BIN / "llm-data", "train-tokenizer", bench.corpora["english"]),
            "--output",
            small,
        ]
        measure(command, environment=bench.environment)
    print("\n| vocabulary | backend | workers | wall s | CPU s | bar |\n|---|---|---|---|---|---|")
    for name, tokenizer in (("8k", small), ("100k", bench.tokenizer)):
        for backend in ("hf", "gigatoken"):
            for workers in (1, WORKERS):
                bench.ours(one, backend=backend, workers=workers, tokenizer=tokenizer)
                runs = [
                    bench.ours(one, backend=backend, workers=workers, tokenizer=tokenizer)
                    for _ in range(bench.rounds)
                ]
                found = median(runs)
                bar = f"≤ {START_BAR_S}: {'met' if found.wall_s <= START_BAR_S else 'missed'}"
                print(
                    f"| {name} | {backend} | {workers} | {found.wall_s:.2f} "
                    f"| {found.cpu_s:.2f} | {bar} |"
                )


def median(runs: Sequence[Run]) -> Run:
    """The median of each figure."""
    return Run(*(statistics.median(figures) for figures in zip(*runs, strict=True)))


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"speed": speed, "memory": memory, "startup": startup}
    parser.add_argument("part", nargs="*", choices=[*parts, []], default=[], metavar="PART")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/llm-data-benchmark"))
    parser.add_argument("--english", type=Path, nargs="*", default=[])
    parser.add_argument("--chinese", type=Path, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bench = Bench(options)
    for name in options.part or parts:
        parts[name](bench)


if __name__ == "__main__":
    main()
