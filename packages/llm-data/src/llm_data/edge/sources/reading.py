"""What the readers of all formats share: the job, its places, the meter."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llm_data.edge.sources.inputs import InputFile
from llm_data.edge.sources.streams import InputStream, open_stream
from llm_data.errors import did_you_mean, listed
from llm_data.records import Place, Reason, Record, Reject

Item = Record | Reject


@dataclass(slots=True)
class Meter:
    """How far into the files on disk the readers have come, in bytes."""

    finished: int = 0
    current: Callable[[], int] = lambda: 0

    @property
    def bytes(self) -> int:
        """Bytes of files finished and of the one being read."""
        return self.finished + self.current()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file to read from a mark on: the column `key` of a table, or whole records."""

    source: int
    file: InputFile
    key: str | None
    start: Place | None
    meter: Meter

    @property
    def skip(self) -> int:
        """The reader's mark, 0 at the beginning."""
        return (self.start.resume or 0) if self.start else 0

    def place(self, number: int, resume: int | None) -> Place:
        """Where a record of this file stands."""
        return Place(self.source, number, resume)

    def refused(self, reason: Reason, detail: str) -> Reject:
        """The whole file as one reject: there is nothing to read in it."""
        return Reject(place=self.place(1, None), reason=reason, detail=detail)


def wrong_columns(job: Job, names: Iterable[str]) -> Reject | None:
    """Why a table with these columns cannot be read, None if it can."""
    every = list(names)
    if job.key is not None and job.key not in every:
        there = f"{listed(every)}{did_you_mean(job.key, every)}"
        return job.refused(Reason.MISSING_KEY, f"no column {job.key!r}; the file has {there}")
    wanted = every if job.key is None else [job.key]
    twice = [name for name in dict.fromkeys(wanted) if every.count(name) > 1]
    if twice:
        detail = f"the column {twice[0]!r} is there {every.count(twice[0])} times, want it once"
        return job.refused(Reason.BROKEN_FILE, detail)
    return None


@contextmanager
def metered(job: Job) -> Iterator[InputStream]:
    """`open_stream` that tells the meter how far it is."""
    with open_stream(job.file.path) as source:
        job.meter.current = source.consumed
        try:
            yield source
        finally:
            job.meter.current = lambda: 0
