"""What a conversion in progress knows of the files it has finished, for a run that goes on with it.

A file is synced while the next one is written. Until then its marker counts only for the system
that wrote it: a killed process leaves the page cache whole, a power cut does not.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from llm_ckpt.errors import FormatError
from llm_ckpt.execute import Job, Written
from llm_ckpt.formats.dist_metadata import Chunk
from llm_ckpt.formats.stream import FileFact, sync_file, write_file
from llm_ckpt.layout import Box

FOLDER = ".done"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere nothing counts before a sync


class Markers:
    """The markers in a folder that is being written."""

    def __init__(self, partial: Path, syncing: ThreadPoolExecutor) -> None:
        self._partial, self._syncing = partial, syncing
        self._pending: list[Future[None]] = []

    def read(self, job: Job) -> Written | None:
        """What was written for a job; None where it is missing or may be lost."""
        path = self._path(job.file.path)
        file = job.folder / job.file.path
        if not path.is_file() or not file.is_file():
            return None
        try:
            marker = json.loads(path.read_text())
        except ValueError:
            return None  # a power cut took what it said
        if marker["boot"] not in (None, _boot_id()):
            return None
        fact = FileFact(marker["bytes"], marker["sha256"])
        if file.stat().st_size != fact.bytes:
            raise FormatError(
                f"{file}: {file.stat().st_size} bytes, want {fact.bytes}; do not --resume"
            )
        chunks = tuple(
            (key, Chunk(Box(tuple(start), tuple(stop)), marker["path"], offset, length))
            for key, start, stop, offset, length in marker["chunks"]
        )
        if marker["boot"] is not None:
            self._sync_later(file, path, marker)
        return Written(marker["path"], fact, chunks)

    def write(self, job: Job, written: Written) -> None:
        """Note a file that was written, and begin to sync it."""
        marker = {
            "path": written.path,
            "bytes": written.fact.bytes,
            "sha256": written.fact.sha256,
            "chunks": [
                [key, chunk.box.start, chunk.box.stop, chunk.offset, chunk.length]
                for key, chunk in written.chunks
            ],
            "boot": _boot_id(),
        }
        path = self._path(written.path)
        write_file(path, json.dumps(marker).encode(), is_durable=False)
        self._sync_later(job.folder / written.path, path, marker)

    def wait(self) -> None:
        """Return when every file is synced; raises what went wrong."""
        while self._pending:
            self._pending.pop(0).result()

    def _sync_later(self, file: Path, path: Path, marker: dict[str, Any]) -> None:
        def sync() -> None:
            sync_file(file)
            sync_file(file.parent)
            write_file(path, json.dumps({**marker, "boot": None}).encode())

        self._pending.append(self._syncing.submit(sync))

    def _path(self, path: str) -> Path:
        return self._partial / FOLDER / (path.replace("/", "__") + ".json")


@contextmanager
def markers_in(partial: Path) -> Iterator[Markers]:
    """The markers; all files are durable when this ends without an error."""
    with ThreadPoolExecutor(1) as syncing:
        markers = Markers(partial, syncing)
        yield markers
        markers.wait()


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return uuid4().hex
