"""Two results side by side: which metrics both have, how far apart, and how sure that is."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from llm_eval.errors import EvalError

Verdict = Literal["better", "worse", "same", "changed"]


Sample = Mapping[str, object]
# Half the width of a 95 % interval of a normal distribution, in standard errors.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where the true difference lies with 95 % confidence.

    Paired when both runs answered the same documents: then what makes a document hard cancels.
    """

    low: float
    high: float
    is_paired: bool

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is more than chance would give one time in twenty."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one task in two runs; None where a run has no finite value."""

    task: str
    metric: str
    before: float | None
    after: float | None
    verdict: Verdict
    interval: Interval | None = None

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


def compare(
    before: Mapping[str, object],
    after: Mapping[str, object],
    *,
    samples_before: Iterable[Sample] = (),
    samples_after: Iterable[Sample] = (),
) -> list[Row]:
    """One row for each metric of each task both results hold.

    The samples are the runs' `samples.jsonl`; where both hold the same documents of a task, and
    the metric is the mean over them, the interval is that of the paired differences. Otherwise it
    follows from the two standard errors, if there are any.
    """
    tasks_before, tasks_after = _tasks(before), _tasks(after)
    common = [name for name in tasks_before if name in tasks_after]
    if not common:
        raise EvalError(
            f"no task in common: the first has {_listed(tasks_before)}, "
            f"the second {_listed(tasks_after)}"
        )
    values = _values(samples_before), _values(samples_after)
    rows: list[Row] = []
    for task in common:
        higher = _mapping(_mapping(after.get("higher_is_better")).get(task))
        first, second = tasks_before[task], tasks_after[task]
        for key in first:
            if key in second and _is_metric(key):
                pairs = [found.get((task, key), {}) for found in values]
                interval = _paired(*pairs) or _unpaired(key, first, second)
                rows.append(_row(task, key, first[key], second[key], higher, interval))
    return rows


def _row(
    task: str,
    key: str,
    before: object,
    after: object,
    higher: Mapping[str, object],
    interval: Interval | None,
) -> Row:
    name = key.split(",")[0]
    old, new = _number(before), _number(after)
    verdict = _verdict(old, new, higher.get(name))
    # The filter is part of the name only where it says something.
    metric = name if key.endswith(",none") else key
    return Row(task=task, metric=metric, before=old, after=new, verdict=verdict, interval=interval)


def _values(samples: Iterable[Sample]) -> dict[tuple[str, str], dict[object, float]]:
    """By task and `metric,filter`: the value of each document, which its digest names."""
    found: dict[tuple[str, str], dict[object, float]] = {}
    for sample in samples:
        task, kind = str(sample.get("task")), sample.get("filter", "none")
        metrics = sample.get("metrics")
        for metric in cast("list[object]", metrics) if isinstance(metrics, list) else []:
            value = _number(sample.get(str(metric)))
            if value is not None:
                document = (sample.get("doc_id"), sample.get("doc_hash"))
                found.setdefault((task, f"{metric},{kind}"), {})[document] = value
    return found


def _paired(before: Mapping[object, float], after: Mapping[object, float]) -> Interval | None:
    """Mean and standard error of the differences, document by document."""
    if len(before) < 2 or before.keys() != after.keys():
        return None
    differences = [after[document] - before[document] for document in before]
    count = len(differences)
    mean = math.fsum(differences) / count
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    half = _Z * math.sqrt(variance / count)
    return Interval(low=mean - half, high=mean + half, is_paired=True)


def _unpaired(
    key: str, before: Mapping[str, object], after: Mapping[str, object]
) -> Interval | None:
    name, _, kind = key.partition(",")
    old, new = _number(before[key]), _number(after[key])
    errors = [_number(found.get(f"{name}_stderr,{kind}")) for found in (before, after)]
    if old is None or new is None or errors[0] is None or errors[1] is None:
        return None
    half = _Z * math.hypot(errors[0], errors[1])
    return Interval(low=new - old - half, high=new - old + half, is_paired=False)


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
