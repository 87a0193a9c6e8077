"""Copies the standard library's own source files into OUTPUT/train and OUTPUT/heldout.

Real text that every machine with Python has: no download, no licence question.
Run it as `python corpus.py OUTPUT [--train-bytes N] [--heldout-bytes N]`.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

# Tests and tools around the library, and what pip or the system put beside it.
SKIPPED = frozenset(
    [
        "__pycache__",
        "config",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "idle_test",
        "lib2to3",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    ]
)
# Held-out files are neither one-liners nor so long that two of them are the whole set.
HELDOUT_FILE_BYTES = range(2_000, 20_000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the two folders and corpus.json, all at once or not at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--train-bytes", type=int, default=20_000_000)
    parser.add_argument("--heldout-bytes", type=int, default=120_000)
    options = parser.parse_args(arguments)
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(source_files(library), key=shuffled)
    if not files:
        sys.exit(f"Error: {library}: no *.py files; this Python has no library sources")
    heldout = up_to(
        [name for name in files if (library / name).stat().st_size in HELDOUT_FILE_BYTES],
        library,
        options.heldout_bytes,
    )
    rest = [name for name in files if name not in set(heldout)]
    train = up_to(rest, library, options.train_bytes)
    if not heldout or not train:
        sys.exit(f"Error: {library}: {len(files)} files are too few to train and hold out from")
    temporary = options.output.with_name(f"{options.output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    facts = {
        "python": platform.python_version(),
        "library": str(library),
        "train": copy(train, library, temporary / "train"),
        "heldout": copy(heldout, library, temporary / "heldout"),
    }
    (temporary / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(options.output, ignore_errors=True)
    temporary.replace(options.output)
    for part in ("train", "heldout"):
        print(
            f"{options.output / part}: {facts[part]['files']} files, {facts[part]['bytes']} bytes"
        )


def source_files(library: Path) -> Iterator[Path]:
    """Yield the UTF-8 source files of the library, relative to it; empty files are no text."""
    for folder, names, files in os.walk(library):
        names[:] = [name for name in names if not is_skipped(name)]
        for name in files:
            path = Path(folder, name)
            if path.suffix == ".py" and is_utf8(path):
                yield path.relative_to(library)


def is_skipped(folder: str) -> bool:
    """Whether a folder is beside the library rather than part of it."""
    return folder in SKIPPED or folder.startswith("config-")


def is_utf8(path: Path) -> bool:
    """Whether a file is readable text and holds some."""
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False


def shuffled(name: Path) -> str:
    """A sort key that is the same everywhere and has nothing to do with the contents."""
    return hashlib.sha256(name.as_posix().encode()).hexdigest()


def up_to(names: Sequence[Path], library: Path, limit: int) -> list[Path]:
    """Take names in order while their bytes stay within limit; one that is too big is passed by."""
    chosen: list[Path] = []
    total = 0
    for name in names:
        size = (library / name).stat().st_size
        if total + size <= limit:
            chosen.append(name)
            total += size
    return chosen


def copy(names: Sequence[Path], library: Path, folder: Path) -> dict[str, int]:
    """Copy files under folder; how many there were, and their bytes."""
    total = 0
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        total += target.write_bytes((library / name).read_bytes())
    return {"files": len(names), "bytes": total}


if __name__ == "__main__":
    main()
