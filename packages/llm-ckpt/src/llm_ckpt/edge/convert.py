"""A whole conversion: plan, write into a folder beside, finish, rename.

Everything goes to `DESTINATION.partial`, which gets its final name only when it is complete. A file
written there has a marker with its checksum, so `resume` redoes at most the file in progress.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from llm_ckpt import __version__
from llm_ckpt.collecting import without_collecting
from llm_ckpt.edge import finish
from llm_ckpt.edge.folder import iteration_name
from llm_ckpt.edge.markers import FOLDER as DONE
from llm_ckpt.edge.markers import markers_in
from llm_ckpt.edge.progress import byte_progress
from llm_ckpt.edge.show import keys_line
from llm_ckpt.edge.space import check_space
from llm_ckpt.edge.workers import write_in_workers, writing_process
from llm_ckpt.errors import CheckpointError
from llm_ckpt.execute import Job, Written, carried_state, write_planned
from llm_ckpt.formats.stream import sync_file, write_file
from llm_ckpt.plan import Plan, Target, make_plan
from llm_ckpt.source import WeightSource

RECORD = ".llm-ckpt.json"
_LOCK = ".lock"


class Opener(Protocol):
    """Opens the source, in this process or in a worker's."""

    def __call__(self) -> WeightSource:
        """A new source."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One conversion. `config` is the config.json to write, when not the source's own."""

    opener: Opener
    destination: Path
    target: Target
    fingerprint: str
    workers: int = 1
    is_resumed: bool = False
    is_overwritten: bool = False
    files: Mapping[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a conversion did."""

    destination: Path
    is_already_done: bool
    written: int
    resumed: int
    total_bytes: int
    notes: tuple[str, ...] = ()


@without_collecting()
def plan_for(source: WeightSource, target: Target) -> Plan:
    """The plan of converting `source` to `target`."""
    state = carried_state(source, target)
    names = [*source.names(), *(state.names() if state else ())]
    return make_plan(source.table, {name: source.dtype(name) for name in names}, target)


def run(request: Request) -> Outcome:
    """Convert; a finished destination with the same plan is left alone."""
    with request.opener() as source:
        plan = plan_for(source, request.target)
        digest = _digest(source, request)
        if _is_done(request.destination, digest):
            return Outcome(request.destination, True, 0, 0, plan.total_bytes, _notes(source, plan))
        _refuse_taken(request)
        partial = request.destination.with_name(request.destination.name + ".partial")
        with _locked(partial, digest, keep=request.is_resumed):
            new = 0 if _is_done(partial, digest) else _fill(request, source, plan, partial)
            _seal(partial, digest)
            _publish(partial, request.destination)
        notes, resumed = _notes(source, plan), len(plan.files) - new
    return Outcome(request.destination, False, new, resumed, plan.total_bytes, notes)


def _fill(request: Request, source: WeightSource, plan: Plan, partial: Path) -> int:
    """Everything of the plan that `partial` has not; the number of files written."""
    jobs = _jobs(source, plan, partial)
    written, resumed = _write_all(request, source, jobs, partial)
    finish.complete(source, plan, jobs[0], written, partial, request.files)
    return len(written) - resumed


def _notes(source: WeightSource, plan: Plan) -> tuple[str, ...]:
    keys = (keys_line(plan),) if plan.target.layout == "v2" else ()
    return (*keys, *_source_notes(source, plan))


def _source_notes(source: WeightSource, plan: Plan) -> tuple[str, ...]:
    if not source.has_optimizer or carried_state(source, plan.target) is not None:
        return source.notes
    return (*source.notes, f"{source.located.weights}: the optimizer's state is left out")


def _jobs(source: WeightSource, plan: Plan, partial: Path) -> list[Job]:
    iteration = 1 if source.iteration is None else source.iteration
    folder = partial if plan.target.layout == "hf" else partial / iteration_name(iteration)
    return [
        Job(plan.target, plan.padded_vocab_size, file, folder, iteration) for file in plan.files
    ]


def _write_all(
    request: Request, source: WeightSource, jobs: list[Job], partial: Path
) -> tuple[list[Written], int]:
    with markers_in(partial) as markers:
        done = {job.file.path: markers.read(job) for job in jobs}
        pending = [job for job in jobs if done[job.file.path] is None]
        left = sum(job.file.nbytes for job in pending)
        check_space(partial, left)
        with byte_progress(f"writing {request.destination.name}", left) as advance:
            for job, result in _results(request, source, pending, advance):
                markers.write(job, result)
                done[job.file.path] = result
    written = [result for result in done.values() if result is not None]
    return written, len(jobs) - len(pending)


def _results(
    request: Request, source: WeightSource, jobs: list[Job], advance: Callable[[int], None]
) -> Iterator[tuple[Job, Written]]:
    if request.workers <= 1 or len(jobs) <= 1:
        with writing_process():
            for job in jobs:
                yield job, write_planned(source, job, advance)
        return
    yield from write_in_workers(
        source, request.opener, jobs, count=request.workers, on_bytes=advance
    )


def _digest(source: WeightSource, request: Request) -> str:
    target = asdict(request.target) | {"dtype": str(request.target.dtype)}
    extra = {n: hashlib.sha256(b).hexdigest() for n, b in sorted((request.files or {}).items())}
    facts = [__version__, source.architecture.digest(), target, request.fingerprint, extra]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _is_done(destination: Path, digest: str) -> bool:
    """Same plan, and every file there with its recorded length."""
    try:
        record = json.loads((destination / RECORD).read_text())
    except (OSError, ValueError):
        return False
    return record.get("plan") == digest and all(
        (destination / name).is_file() and (destination / name).stat().st_size == size
        for name, size in record["files"].items()
    )


def _refuse_taken(request: Request) -> None:
    destination = request.destination
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not request.is_overwritten:
        raise CheckpointError(
            f"{destination}: already exists and is not this conversion's result; "
            "use --overwrite, or another --output"
        )
    if not (destination / RECORD).is_file():
        raise CheckpointError(
            f"{destination}: --overwrite refused, since llm-ckpt did not write it (no {RECORD})"
        )


@contextmanager
def _locked(partial: Path, digest: str, *, keep: bool) -> Iterator[None]:
    """The partial folder, for one process; emptied unless it belongs to the same plan."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(f"{partial}: another conversion is writing here") from None
        lock.seek(0)
        is_ours = lock.read() == digest or _is_done(partial, digest)
        if not (keep and is_ours):
            for child in partial.iterdir():
                if child.is_dir():
                    shutil.rmtree(child)
                elif child.name != _LOCK:
                    child.unlink()
            lock.truncate(0)
            lock.write(digest)
            lock.flush()
        try:
            yield
        finally:
            if partial.exists() and [child.name for child in partial.iterdir()] == [_LOCK]:
                shutil.rmtree(partial)  # nothing was written


def _seal(partial: Path, digest: str) -> None:
    """Record the plan; the folder is complete after this."""
    files = {
        str(path.relative_to(partial)): path.stat().st_size
        for path in sorted(partial.rglob("*"))
        if path.is_file() and not {DONE, _LOCK, RECORD} & set(path.relative_to(partial).parts)
    }
    record = {"plan": digest, "created_by": f"llm-ckpt {__version__}", "files": files}
    write_file(partial / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def _publish(partial: Path, destination: Path) -> None:
    """Give the complete folder its name; what only a conversion in progress needs goes first."""
    shutil.rmtree(partial / DONE, ignore_errors=True)
    (partial / _LOCK).unlink(missing_ok=True)
    for folder in [partial, *(p for p in partial.rglob("*") if p.is_dir())]:
        sync_file(folder)
    if destination.exists():
        os.rename(destination, destination.with_name(f".{destination.name}.{os.getpid()}.old"))
    os.rename(partial, destination)
    sync_file(destination.parent)
    # Also those of runs that were killed right here.
    for old in destination.parent.glob(f".{glob.escape(destination.name)}.*.old"):
        shutil.rmtree(old)
