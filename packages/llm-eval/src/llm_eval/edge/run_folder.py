"""The results folder of one run: what was asked, the journal of scored batches, the results.

While a run lasts: `run.json` (the settings) and `journal.jsonl` (one line a scored batch).
When it ends: `samples.jsonl`, then `results.json`; the journal goes. `results.json` is only
ever there when the run is complete. A run that failed leaves `partial.json` beside its journal.
"""

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llm_eval.edge.atomic import write_atomic
from llm_eval.errors import EvalError
from llm_eval.results import to_json, to_jsonl

RESULTS, SAMPLES, RUN, JOURNAL, PARTIAL = (
    "results.json",
    "samples.jsonl",
    "run.json",
    "journal.jsonl",
    "partial.json",
)

Settings = Mapping[str, object]
Score = tuple[float, int]


class RunFolder:
    """Holds the folder for one process; use as a context manager."""

    def __init__(self, path: Path, settings: Settings, *, overwrite: bool = False) -> None:
        self.path = path
        self._settings = settings
        self._overwrite = overwrite
        self._known: dict[str, list[Score]] = {}
        self._answers: dict[str, Any] = {}
        self._journal: FileIO | None = None
        self._on_scored: Callable[[int], None] = lambda _: None

    def __enter__(self) -> Self:
        if self.path.exists() and not self.path.is_dir():
            raise EvalError(f"{self.path}: is a file, want a folder for the results")
        self.path.mkdir(parents=True, exist_ok=True)
        self._journal = (self.path / JOURNAL).open("ab+", buffering=0)
        try:
            self._lock()
            self._open()
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self.is_finished:
            # A full disk may have no room for it; `error` says so, and the journal has the scores.
            with suppress(OSError):
                self._write_partial(error)
        elif self.is_finished:
            (self.path / JOURNAL).unlink(missing_ok=True)
        if self._journal is not None:
            self._journal.close()

    @property
    def is_finished(self) -> bool:
        """Whether the results are complete."""
        return (self.path / RESULTS).exists()

    @property
    def num_known(self) -> int:
        """Batches an earlier, interrupted run has scored."""
        return len(self._known)

    def results(self) -> dict[str, object]:
        """The finished results."""
        return read_results(self.path)

    def watch(self, on_scored: Callable[[int], None]) -> None:
        """Call `on_scored(num_tokens)` after each batch."""
        self._on_scored = on_scored

    def recall(
        self, key: str, compute: Callable[[], Sequence[Score]], *, num_tokens: int
    ) -> list[Score]:
        """The scores of batch `key`: from the journal, else computed and appended to it."""
        if key not in self._known:
            scores = list(compute())
            if not all(math.isfinite(logprob) for logprob, _ in scores):
                raise EvalError(f"the model gave a log-probability that is no number: {scores}")
            self._append({"key": key, "scores": scores, "num_tokens": num_tokens})
            self._known[key] = scores
        self._on_scored(num_tokens)
        return self._known[key]

    @property
    def num_answers(self) -> int:
        """Requests that have an answer in the journal."""
        return len(self._answers)

    def lookup(self, key: str) -> Any:
        """The journal's answer to a request, or None."""
        return self._answers.get(key)

    def append(self, answers: Sequence[tuple[str, Any]]) -> None:
        """Write answers as one line of the journal, and remember them."""
        self._append({"answers": answers})
        self._answers.update(answers)

    def finish(
        self, results: Mapping[str, object], samples: Sequence[object], *, seconds: float
    ) -> None:
        """Write the samples, then the results; from then on the run is complete."""
        record = self._run_record() | {"seconds": round(seconds, 3)}
        for name, content in (
            (SAMPLES, to_jsonl(samples)),
            (RUN, to_json(record)),
            (RESULTS, to_json(results)),
        ):
            with _writing(self.path / name):
                write_atomic(self.path / name, content)
        (self.path / PARTIAL).unlink(missing_ok=True)

    def _lock(self) -> None:
        assert self._journal is not None
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvalError(f"{self.path}: another run is writing here") from None

    def _open(self) -> None:
        assert self._journal is not None
        if self._overwrite:
            self._journal.truncate(0)
            for name in (RESULTS, SAMPLES, RUN, PARTIAL):
                (self.path / name).unlink(missing_ok=True)
        if (self.path / RUN).exists():
            self._check_settings()
        elif self.is_finished:
            raise EvalError(f"{self.path}: has {RESULTS} but no {RUN}; choose another --output")
        else:
            write_atomic(self.path / RUN, to_json(self._run_record()))
        self._load_journal()

    def _check_settings(self) -> None:
        stored = _read_object(self.path / RUN).get("settings")
        stored = stored if isinstance(stored, dict) else {}
        asked: dict[str, object] = json.loads(to_json(self._settings))
        changed = [key for key in asked | stored if asked.get(key) != stored.get(key)]
        if changed:
            lines = [f"  {key}: was {stored.get(key)!r}, now {asked.get(key)!r}" for key in changed]
            raise EvalError(
                f"{self.path}: holds a run with other settings:\n"
                + "\n".join(lines)
                + "\nchoose another --output, or start afresh with --overwrite"
            )

    def _load_journal(self) -> None:
        """Read whole lines; a last line cut off by a crash is dropped from the file."""
        assert self._journal is not None
        self._journal.seek(0)
        good = 0
        for line in self._journal.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if "answers" in record:
                self._answers.update(record["answers"])
            else:
                self._known[record["key"]] = [(score[0], score[1]) for score in record["scores"]]
            good += len(line)
        self._journal.truncate(good)

    def _append(self, record: Mapping[str, object]) -> None:
        assert self._journal is not None
        good = os.fstat(self._journal.fileno()).st_size
        left = json.dumps(record).encode() + b"\n"
        with _writing(self.path / JOURNAL):
            try:
                while left:
                    left = left[self._journal.write(left) :]
                os.fsync(self._journal.fileno())
            except OSError:
                # Half a line must not stand before the next one.
                self._journal.truncate(good)
                raise

    def _run_record(self) -> dict[str, object]:
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"settings": dict(self._settings), "written": started}

    def _write_partial(self, error: BaseException) -> None:
        scored = list(self._known.values())
        record: dict[str, object] = {
            "partial": True,
            "error": f"{type(error).__name__}: {error}",
            "scored_requests": len(self._answers),
            "scored_batches": len(scored),
            "logprob_so_far": math.fsum(logprob for batch in scored for logprob, _ in batch),
        }
        write_atomic(self.path / PARTIAL, to_json(record))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the system refuses (a full disk, a quota) as an error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise EvalError(
            f"{path}: cannot be written: {error.strerror}; what was scored before is kept: "
            "make room, then run the same command again"
        ) from error


def read_results(folder: Path) -> dict[str, object]:
    """The `results.json` of a finished run (or the file itself)."""
    if folder.is_file():
        return _read_object(folder)
    if not folder.is_dir():
        raise EvalError(f"{folder}: no such results folder")
    if not (folder / RESULTS).exists():
        unfinished = (folder / JOURNAL).exists()
        reason = "its run is unfinished; run the same command again" if unfinished else "not one"
        raise EvalError(f"{folder}: no {RESULTS} in this folder: {reason}")
    return _read_object(folder / RESULTS)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The rows of `samples.jsonl`, or none where there is no such file."""
    path = folder / SAMPLES
    if not path.is_file():
        return []
    # Not splitlines: a text may hold U+2028, which JSON leaves as it is.
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines if line]
    except ValueError as error:
        raise EvalError(f"{path}: not JSON lines ({error})") from None


def _read_object(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise EvalError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise EvalError(f"{path}: found {type(value).__name__}, want a JSON object")
    return value
