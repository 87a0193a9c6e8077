"""The harness's task files on disk: a quick index, and a TaskManager over what a run needs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_eval.errors import EvalError
from llm_eval.taskindex import Named, build, require

if TYPE_CHECKING:
    from llm_eval.harness.local_tasks import Manager, Rows


def index(include: Path | None) -> dict[str, Named]:
    """Every name the harness ships, and those under `include`, which win."""
    shipped = build(_contents(_shipped_root()))
    if include is None:
        return shipped
    if not include.is_dir():
        raise EvalError(f"--include-path {include}: no such folder")
    own = build(_contents(include))
    if not own:
        raise EvalError(f"--include-path {include}: no *.yaml file there names a task")
    return shipped | own


def manager(
    names: Sequence[str],
    names_index: Mapping[str, Named],
    include: Path | None,
    *,
    data: "Rows | None" = None,
    overrides: Mapping[str, object] | None = None,
) -> "Manager":
    """A TaskManager that has read only the folders that `names` and their members lie in."""
    from llm_eval.harness.local_tasks import Manager

    root = _shipped_root()
    files = _needed_files(names, names_index)
    shipped = _smallest({file.parent for file in files if file.is_relative_to(root)})
    folders: list[str | Path] = [*shipped, *([include] if include else [])]
    return Manager(folders, data=data, overrides=overrides)


def _smallest(folders: Iterable[Path]) -> list[Path]:
    """The folders without those inside another of them."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(parent) for parent in kept):
            kept.append(folder)
    return kept


def _needed_files(names: Sequence[str], names_index: Mapping[str, Named]) -> set[Path]:
    needed: set[Path] = set()
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        entry = require(name, names_index)
        needed.update(entry.files)
        if entry.kind == "group":
            waiting += _known_members(entry.files[0], names_index)
    return needed


def _known_members(group_file: Path, names_index: Mapping[str, Named]) -> list[str]:
    """Names that a group's file mentions, at any depth, without those it defines there itself."""
    from lm_eval.tasks._yaml_loader import load_yaml

    whole = load_yaml(group_file, resolve_func=False, recursive=True)
    known: list[str] = []
    for name, is_reference in _mentioned(whole.get("task")):
        if name in names_index:
            known.append(name)
        elif is_reference:
            try:
                require(name, names_index)
            except EvalError as error:
                raise EvalError(f"{group_file}: {error}") from error
    return known


def _mentioned(value: Any) -> Iterator[tuple[str, bool]]:
    """Names, and whether each stands by itself, as the name of a task that is defined elsewhere."""
    if isinstance(value, str):
        yield value, False
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, str):
                yield item, True
            else:
                yield from _mentioned(item)
    elif isinstance(value, dict):
        yield from _mentioned(value.get("task"))
        yield from _mentioned(value.get("group"))


def _contents(root: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(root.rglob("*.yaml")):
        yield path, path.read_bytes()


def _shipped_root() -> Path:
    # Found, not imported: importing the harness's tasks takes seconds.
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise EvalError("lm-eval is not installed: pip install --force-reinstall llm-eval")
    return Path(spec.origin).parent / "tasks"
