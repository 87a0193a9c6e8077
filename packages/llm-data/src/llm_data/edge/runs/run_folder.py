"""The folder of an unfinished run: what is whole in it, and how it becomes the dataset.

`progress.json` is replaced after every chunk, when all it counts is on the disk. What lies
beyond its counts is cut off on resuming. `manifest.json` is written when everything else is
final; from then on publishing is only renames, the manifest's last.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from llm_data.config import RunIdentity
from llm_data.edge.datasets.spool import INDEX_FILE, TOKENS_FILE, SpoolMark
from llm_data.edge.durable import sync, sync_folder, with_suffix, write_whole
from llm_data.errors import DataError
from llm_data.records import Place

_STATE_VERSION = 2


class Pair(NamedTuple):
    """One column's files: the spool's folder, what the manifest calls them, their final stem."""

    spool: str
    entry: str
    stem: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a dataset's files stand: `stem` names the manifest and the run's folder."""

    stem: Path
    pairs: tuple[Pair, ...]

    @property
    def files(self) -> dict[str, Path]:
        """What the manifest calls a file, and its final name."""
        return {
            f"{pair.entry}{end}": with_suffix(pair.stem, f".{end}")
            for pair in self.pairs
            for end in ("bin", "idx")
        }

    @property
    def manifest(self) -> Path:
        """The manifest's final name."""
        return with_suffix(self.stem, ".json")

    @property
    def rejects(self) -> Path:
        """The quarantine's final name."""
        return with_suffix(self.stem, ".rejects.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackState:
    """How many samples stand in whole rows, and the spools that hold those rows."""

    samples: int = 0
    marks: Mapping[str, SpoolMark] = field(default_factory=dict[str, SpoolMark])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands: counts of whole files, the last record done, the drops so far.

    `is_read` says that no record is left; `packed` is how far the rows of a packed run are.
    """

    identity: RunIdentity
    marks: Mapping[str, SpoolMark] = field(default_factory=dict[str, SpoolMark])
    place: Place | None = None
    is_read: bool = False
    drops: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: Mapping[str, int] = field(default_factory=dict[str, int])
    rejects_bytes: int = 0
    packed: PackState = field(default_factory=PackState)

    @property
    def num_documents(self) -> int:
        """Documents, or samples, that are whole in every column."""
        return next((mark.num_documents for mark in self.marks.values()), 0)

    @property
    def num_tokens(self) -> int:
        """Tokens in the first column."""
        return next((mark.num_tokens for mark in self.marks.values()), 0)


class RunFolder:
    """Paths and state of one run at `<stem>.parts`."""

    def __init__(self, layout: Layout) -> None:
        self.path = with_suffix(layout.stem, ".parts")
        self._layout = layout
        self._progress = self.path / "progress.json"
        self._manifest = self.path / "manifest.json"
        self._rejects = self.path / "rejects.jsonl"

    @property
    def published(self) -> dict[Path, Path]:
        """Spool file to final name, in the order of publishing; the manifest comes last."""
        found: dict[Path, Path] = {}
        for pair in self._layout.pairs:
            folder = self.column(pair.spool)
            found[folder / TOKENS_FILE] = with_suffix(pair.stem, ".bin")
            found[folder / INDEX_FILE] = with_suffix(pair.stem, ".idx")
        found[self._rejects] = self._layout.rejects
        found[self._manifest] = self._layout.manifest
        return found

    def column(self, name: str) -> Path:
        """The folder of a column's spool."""
        return self.path / f"column-{name}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second run; the lock dies with its process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{self.path}: another llm-data is writing here") from None
            yield

    def clear(self) -> None:
        """Forget the unfinished run, the manifest first."""
        for path in (self._manifest, self._progress):
            path.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def load(self) -> RunState | None:
        """The state of the last whole chunk, None before the first."""
        if not self._progress.exists():
            return None
        try:
            body = json.loads(self._progress.read_bytes())
            if body.pop("state_version") != _STATE_VERSION:
                raise ValueError("another version")
            body["identity"]["inputs"] = tuple(body["identity"]["inputs"])
            body["identity"] = RunIdentity(**body["identity"])
            body["marks"] = _marks_of(body["marks"])
            body["place"] = Place(*body["place"]) if body["place"] else None
            packed = body["packed"]
            body["packed"] = PackState(samples=packed["samples"], marks=_marks_of(packed["marks"]))
            return RunState(**body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self._progress}: not a state this version wrote ({error}); "
                "--no-resume starts over"
            ) from None

    def save(self, state: RunState) -> None:
        """Make `state` the point of return."""
        body = {"state_version": _STATE_VERSION, **asdict(state)}
        write_whole(self._progress, json.dumps(body, indent=1).encode())

    def open_rejects(self, size: int) -> "RejectFile":
        """The quarantine, cut back to `size` bytes."""
        return RejectFile(self._rejects, size)

    def first_reject(self) -> bytes:
        """The quarantine's first line, empty if there is none."""
        if not self._rejects.exists():
            return b""
        with self._rejects.open("rb") as lines:
            return lines.readline()

    @property
    def is_ready(self) -> bool:
        """Only publishing is left."""
        return self._manifest.exists()

    def seal(self, manifest: bytes) -> None:
        """Everything is final: from here on a rerun only publishes."""
        write_whole(self._manifest, manifest)

    def publish(self) -> None:
        """Move every file to its final name; safe to repeat after a kill at any point."""
        for spool, final in self.published.items():
            if spool == self._rejects and spool.exists() and not spool.stat().st_size:
                spool.unlink()
            elif spool.exists():
                if spool == self._manifest:
                    # The manifest vouches for the other names: they must last first.
                    sync_folder(self._layout.stem.parent)
                spool.replace(final)
            elif not final.exists() and spool != self._rejects:
                raise DataError(f"{spool}: missing; --no-resume starts over")
        sync_folder(self._layout.stem.parent)
        self.remove()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


class RejectFile:
    """The quarantine: one JSON line a record that gave no document."""

    def __init__(self, path: Path, size: int) -> None:
        self._stream = path.open("r+b" if path.exists() else "w+b")
        if (found := path.stat().st_size) < size:
            self._stream.close()
            raise DataError(f"{path}: {found} bytes, want {size}; --no-resume starts over")
        self._stream.truncate(size)
        self._stream.seek(size)

    def append(self, line: bytes) -> None:
        """Add a line; its end is added here."""
        self._stream.write(line + b"\n")

    def mark(self) -> int:
        """Its size, once that much is on the disk."""
        sync(self._stream)
        return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def add_counts(before: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Counts added up, by name in sorted order; those that stay 0 are left out."""
    total = {name: before.get(name, 0) + more.get(name, 0) for name in (*before, *more)}
    return {name: total[name] for name in sorted(total) if total[name]}


def _marks_of(body: Mapping[str, Mapping[str, object]]) -> dict[str, SpoolMark]:
    return {name: SpoolMark(**mark) for name, mark in body.items()}  # pyright: ignore[reportArgumentType] - JSON that we wrote
