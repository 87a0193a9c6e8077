"""Checkpoint folders on disk: iterations, checksums, tracker.

Contract: tests/contracts/checkpoint/SPEC.md.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
DESCRIPTION = "checkpoint.json"
_READ_BYTES = 1 << 22


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """checkpoint.json version 1."""

    layout: str
    iteration: int
    consumed_samples: int
    arch_digest: str
    tokenizer_digest: str | None
    parallel: Mapping[str, int | None]
    contains: Sequence[str]
    files: Mapping[str, FileFacts]
    created_by: str


def iteration_folder(root: Path, iteration: int) -> Path:
    """The folder of one iteration."""
    return root / f"iter_{iteration:07d}"


def hf_folder(root: Path, iteration: int) -> Path:
    """Where the same weights lie as a Hugging Face folder, if the run writes them."""
    return root / f"hf_{iteration:07d}"


def adapter_folder(root: Path, iteration: int) -> Path:
    """Where the adapters of an iteration lie as a PEFT folder."""
    return root / f"adapter_{iteration:07d}"


def finished_iterations(root: Path) -> list[int]:
    """Iterations whose description is in place, oldest first."""
    found = [
        int(match.group(1))
        for path in root.glob("iter_*")
        if (match := re.fullmatch(r"iter_(\d{7,})", path.name)) and (path / DESCRIPTION).is_file()
    ]
    return sorted(found)


def file_facts(path: Path) -> FileFacts:
    """Size and checksum of a file, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return FileFacts(bytes=size, sha256=digest.hexdigest())


def damage(folder: Path, name: str, wanted: FileFacts) -> str | None:
    """What is wrong with one file of a checkpoint, or None."""
    path = folder / name
    if not path.is_file():
        return f"{path}: missing, {DESCRIPTION} lists it with {wanted.bytes} bytes"
    if (size := path.stat().st_size) != wanted.bytes:
        return f"{path}: found {size} bytes, want {wanted.bytes}"
    if (found := file_facts(path).sha256) != wanted.sha256:
        return f"{path}: found sha256 {found[:12]}…, want {wanted.sha256[:12]}…"
    return None


def read_description(folder: Path) -> Description:
    """The description of one iteration.

    Raises CheckpointError when it is missing or is not version 1.
    """
    path = folder / DESCRIPTION
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, the save did not finish") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    head = (document.pop("format", None), document.pop("version", None))
    if head != ("checkpoint", 1):
        raise CheckpointError(f"{path}: format, version {head}, want ('checkpoint', 1)")
    try:
        files = {name: FileFacts(**facts) for name, facts in document.pop("files").items()}
        return Description(**document, files=files)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint.json version 1: {error}") from None


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write under a temporary name, bring it to disk, rename."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, bring it to disk, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def finish(root: Path, saving: Path, description: Description) -> None:
    """Name a complete save: its description, its folder, then the tracker."""
    document = {"format": "checkpoint", "version": 1, **asdict(description)}
    write_json(saving / DESCRIPTION, document)
    final = iteration_folder(root, description.iteration)
    if final.exists():
        shutil.rmtree(final)
    saving.rename(final)
    write_text(root / TRACKER, f"{description.iteration}\n")


def prune(root: Path, keep: int) -> None:
    """Remove all finished iterations but the newest `keep`, and their Hugging Face folders."""
    for iteration in finished_iterations(root)[:-keep]:
        shutil.rmtree(iteration_folder(root, iteration))
        shutil.rmtree(hf_folder(root, iteration), ignore_errors=True)


def copy_companions(root: Path, companions: Sequence[Path]) -> None:
    """Put tokenizer and config files beside the iterations, once."""
    for source in companions:
        target = root / source.name
        if source.resolve() == target.resolve():
            continue
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
