"""Scorers by name, from the entry points of installed packages."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from llm_eval.errors import EvalError
from llm_eval.scorer import ENTRY_POINT_GROUP, Scorer


def require(name: str) -> EntryPoint:
    """Where the scorer `name` is; raises with the choices when there is none."""
    return _find(name, entry_points(group=ENTRY_POINT_GROUP))


def open_scorer(
    name: str,
    model: Path,
    *,
    device: str,
    dtype: str,
    batch_size: int,
    max_length: int | None,
    threads: int | None,
) -> Scorer:
    """The scorer `name` over a model folder; raises with the reason when there is none."""
    entry = require(name)
    package = entry.dist.name if entry.dist else entry.value
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as error:
        raise EvalError(
            f"scorer {name}: {entry.value} does not load ({error}); reinstall with\n"
            f"  pip install --force-reinstall {package}"
        ) from error
    try:
        return factory(
            model,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            max_length=max_length,
            threads=threads,
        )
    except (ValueError, OSError) as error:
        raise EvalError(f"scorer {name} ({package}) refuses {model}: {error}") from error


def _find(name: str, entries: Iterable[EntryPoint]) -> EntryPoint:
    known = {entry.name: entry for entry in entries}
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    choices = ", ".join(["hf", *sorted(known)])
    raise EvalError(
        f"no scorer named {name!r}"
        + (f"; did you mean {near[0]}?" if near else "")
        + f"\nchoices here: {choices}; scorers come with a package that registers one in the"
        f" entry-point group {ENTRY_POINT_GROUP!r}:\n  pip install llm-infer"
    )
