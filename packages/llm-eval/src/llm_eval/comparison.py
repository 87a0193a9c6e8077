"""Two results side by side: which metrics both have, and how far apart they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from llm_eval.errors import EvalError

Verdict = Literal["better", "worse", "same", "changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one task in two runs; None where a run has no finite value."""

    task: str
    metric: str
    before: float | None
    after: float | None
    verdict: Verdict

    @property
    def difference(self) -> float | None:
        """`after - before`, where both exist."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def ratio(self) -> float | None:
        """`after / before`, where that is a number."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        return self.after / self.before


def compare(before: Mapping[str, object], after: Mapping[str, object]) -> list[Row]:
    """One row for each metric of each task both results hold."""
    tasks_before, tasks_after = _tasks(before), _tasks(after)
    common = [name for name in tasks_before if name in tasks_after]
    if not common:
        raise EvalError(
            f"no task in common: the first has {_listed(tasks_before)}, "
            f"the second {_listed(tasks_after)}"
        )
    rows: list[Row] = []
    for task in common:
        higher = _mapping(_mapping(after.get("higher_is_better")).get(task))
        first, second = tasks_before[task], tasks_after[task]
        for key in first:
            if key in second and _is_metric(key):
                rows.append(_row(task, key, first[key], second[key], higher))
    return rows


def _row(task: str, key: str, before: object, after: object, higher: Mapping[str, object]) -> Row:
    name = key.split(",")[0]
    old, new = _number(before), _number(after)
    verdict = _verdict(old, new, higher.get(name))
    # The filter is part of the name only where it says something.
    metric = name if key.endswith(",none") else key
    return Row(task=task, metric=metric, before=old, after=new, verdict=verdict)


def _verdict(before: float | None, after: float | None, higher_is_better: object) -> Verdict:
    if before == after:
        return "same"
    if before is None or after is None or not isinstance(higher_is_better, bool):
        return "changed"
    return "better" if (after > before) == higher_is_better else "worse"


def _is_metric(key: str) -> bool:
    """lm-eval writes metrics as `name,filter`; the standard errors go with their metric."""
    return "," in key and not key.split(",")[0].endswith("_stderr")


def _tasks(results: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    return {name: _mapping(value) for name, value in _mapping(results.get("results")).items()}


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
