"""Room on a disk: what a conversion needs against what is free, before anything is written."""

import os
from pathlib import Path

from llm_ckpt.edge.show import human
from llm_ckpt.errors import CheckpointError


def free_bytes(path: Path) -> int:
    """What a user may still write where `path` is or will be."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    space = os.statvfs(existing)
    return space.f_bavail * space.f_frsize


def space_line(path: Path, needed: int) -> str:
    """Needed and free, for people."""
    return f"disk: {human(needed)} needed, {human(free_bytes(path))} free at {path}"


def check_space(path: Path, needed: int) -> None:
    """Refuse what cannot fit."""
    if (free := free_bytes(path)) < needed:
        raise CheckpointError(
            f"{path}: disk: {needed} bytes ({human(needed)}) needed, "
            f"{free} ({human(free)}) free; nothing was written"
        )
