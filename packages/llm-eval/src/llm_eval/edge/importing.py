"""`llm-eval import-data`: an original distribution into a local data folder with checksums."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llm_eval.edge.archives import members
from llm_eval.edge.atomic import write_atomic
from llm_eval.edge.local_data import MANIFEST, VERSION
from llm_eval.errors import EvalError
from llm_eval.originals import LAYOUTS, Layout, Member, Row
from llm_eval.results import to_json, to_jsonl

Rows = dict[tuple[str, str], list[Row]]
_NOISE = ("._", "__MACOSX")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import wrote."""

    folder: Path
    num_datasets: int
    num_rows: int


def import_data(
    name: str, sources: Sequence[Path], data: Path, *, partial: bool, overwrite: bool
) -> Imported:
    """Read every record of `sources`, then write `data/name`; nothing stays of a failed import.

    `partial` accepts a distribution that lacks subjects. Raises EvalError with the member at
    fault, or with what is missing.
    """
    layout, folder = LAYOUTS[name], data / name
    if folder.exists() and not overwrite:
        raise EvalError(f"{folder}: exists; --overwrite replaces it")
    rows = _read(layout, sources)
    listed = ", ".join(str(source) for source in sources)
    if not rows:
        raise EvalError(f"{listed}: no file of {name} in it; want {layout.distribution}")
    if not partial:
        _require_all(layout, rows, listed)
    temporary = data / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        entries = _write(layout, rows, temporary)
        manifest = {
            "format": "llm-eval data",
            "version": VERSION,
            "benchmark": name,
            "partial": partial,
            "sources": [{"name": source.name, "sha256": _digest(source)} for source in sources],
            "datasets": entries,
        }
        write_atomic(temporary / MANIFEST, to_json(manifest))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    subjects = {subject for subject, _ in rows}
    num_rows = sum(len(found) for found in rows.values())
    return Imported(folder=folder, num_datasets=len(subjects), num_rows=num_rows)


def _read(layout: Layout, sources: Sequence[Path]) -> Rows:
    rows: Rows = {}
    for source in sources:
        for file in members(source):
            if any(part.startswith(_NOISE) for part in file.path.split("/")):
                continue
            member = layout.member(file.path)
            if member is None:
                continue
            named = Member(
                where=f"{source}: {file.path}", split=member.split, subject=member.subject
            )
            for row in layout.rows(file.content, named):
                split = layout.split_of(row) if layout.split_of else member.split
                rows.setdefault((member.subject, split), []).append(row)
    return rows


def _require_all(layout: Layout, rows: Rows, where: str) -> None:
    subjects = _expected_subjects(layout) or {subject for subject, _ in rows}
    missing = sorted(
        f"{subject or layout.dataset} ({split})"
        for subject in subjects
        for split in layout.required
        if (subject, split) not in rows
    )
    if missing:
        raise EvalError(
            f"{where}: {len(missing)} of {len(subjects) * len(layout.required)} parts missing: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}\n"
            f"want {layout.distribution}; --partial accepts less"
        )


def _expected_subjects(layout: Layout) -> set[str]:
    """Every subject that a task file of the harness reads; empty where there are none."""
    if layout.task_files is None:
        return set()
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise EvalError("lm-eval is not installed: pip install --force-reinstall llm-eval")
    folder = Path(spec.origin).parent / "tasks" / layout.task_files
    named = re.compile(layout.names_in_task_files)
    found = {m[1] for file in folder.glob("*.yaml") for m in named.finditer(file.read_text())}
    return found - {"null"}


def _write(layout: Layout, rows: Rows, folder: Path) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for (subject, split), found in sorted(rows.items()):
        dataset, config = layout.key(subject)
        file = f"{subject or 'all'}/{split}.jsonl"
        content = to_jsonl(found)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / file, content)
        entries.append(
            {
                "dataset": dataset,
                "also_known_as": list(layout.also_known_as),
                "config": config,
                "split": split,
                "file": file,
                "rows": len(found),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    return entries


def _digest(source: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    if source.is_file():
        with source.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    state = hashlib.sha256()
    for file in members(source):
        state.update(f"{file.path}\0{len(file.content)}\0".encode() + file.content)
    return state.hexdigest()
