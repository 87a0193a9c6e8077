"""The folder of an unfinished run: what is whole in it, and how it becomes the dataset.

`progress.json` is replaced after every chunk, when all it counts is on the disk. What lies
beyond its counts is cut off on resuming. `manifest.json` is written when everything else is
final; from then on publishing is only renames, the manifest's last.
"""

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llm_data.config import RunIdentity
from llm_data.edge.durable import sync, sync_folder, write_whole
from llm_data.edge.token_dataset import SpoolMark, with_suffix
from llm_data.errors import DataError
from llm_data.records import Place

_STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands: counts of whole files, the last record done, the drops so far."""

    identity: RunIdentity
    mark: SpoolMark = field(default_factory=SpoolMark)
    place: Place | None = None
    drops: dict[str, int] = field(default_factory=dict[str, int])
    rejects_bytes: int = 0


class RunFolder:
    """Paths and state of one run at `<stem>.parts`."""

    def __init__(self, stem: Path) -> None:
        self.path = with_suffix(stem, ".parts")
        self._stem = stem
        self._progress = self.path / "progress.json"
        self._manifest = self.path / "manifest.json"
        self._rejects = self.path / "rejects.jsonl"

    @property
    def published(self) -> dict[Path, Path]:
        """Spool file to final name, in the order of publishing; the manifest comes last."""
        return {
            self.path / "tokens.bin": with_suffix(self._stem, ".bin"),
            self.path / "index.idx": with_suffix(self._stem, ".idx"),
            self._rejects: with_suffix(self._stem, ".rejects.jsonl"),
            self._manifest: with_suffix(self._stem, ".json"),
        }

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
            if path.name != "lock":
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
            return RunState(
                identity=RunIdentity(**body["identity"]),
                mark=SpoolMark(**body["mark"]),
                place=Place(*body["place"]) if body["place"] else None,
                drops=body["drops"],
                rejects_bytes=body["rejects_bytes"],
            )
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
                spool.replace(final)
            elif not final.exists() and spool != self._rejects:
                raise DataError(f"{spool}: missing; --no-resume starts over")
        sync_folder(self._stem.parent)
        self.remove()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


class RejectFile:
    """The quarantine: one JSON line a record that gave no document."""

    def __init__(self, path: Path, size: int) -> None:
        self._stream = path.open("r+b" if path.exists() else "w+b")
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


def add_drops(before: dict[str, int], more: Counter[str]) -> dict[str, int]:
    """Counts added up, by name."""
    total = Counter(before) + more
    return {reason: total[reason] for reason in sorted(total)}
