"""The curves of a run: what is drawn of its metrics, how it is smoothed and summed up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm_train.metrics import Curve, MetricsError, Record, curve


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCurves:
    """One run: its label and a curve for each quantity; a quantity never measured is empty."""

    label: str
    loss: Curve
    eval_loss: Curve
    lr: Curve
    grad_norm: Curve
    tokens_per_second: Curve
    consumed_tokens: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in a row of numbers; None where nothing finite was measured."""

    label: str
    steps: int
    tokens: int | None
    loss_first: float | None
    loss_last: float | None
    eval_loss_best: float | None
    tokens_per_second: float | None


def run_curves(records: Sequence[Record], label: str) -> RunCurves:
    """Sort the metrics of one run into curves; refuse metrics without a single step."""
    loss = curve(records, "loss")
    if not loss.steps:
        raise MetricsError(f"{label}: no step in it yet, wanted at least one line with a loss")
    return RunCurves(
        label=label,
        loss=loss,
        eval_loss=curve(records, "eval_loss"),
        lr=curve(records, "lr"),
        grad_norm=curve(records, "grad_norm"),
        tokens_per_second=curve(records, "tokens_per_second"),
        consumed_tokens=curve(records, "consumed_tokens"),
    )


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Average exponentially with weight 2 / (window + 1), bias-corrected as in Adam; NaN is kept.

    Source: Kingma and Ba 2015, section 3, for the correction by 1 - (1 - weight)^n.
    """
    keep = 1 - 2 / (window + 1)
    total, remaining, smoothed = 0.0, 1.0, list[float]()
    for value in values:
        if math.isnan(value):
            smoothed.append(math.nan)
            continue
        total = keep * total + (1 - keep) * value
        remaining *= keep
        smoothed.append(total / (1 - remaining))
    return smoothed


def smoothing_window(num_steps: int) -> int:
    """Choose how many steps to average over: a fiftieth of the run, between 1 and 200."""
    return min(max(num_steps // 50, 1), 200)


def summary(run: RunCurves) -> Summary:
    """Sum a run up; speed is the median step's, which the slow first steps do not move."""
    losses, evals = _finite(run.loss.values), _finite(run.eval_loss.values)
    speeds, tokens = (
        sorted(_finite(run.tokens_per_second.values)),
        _finite(run.consumed_tokens.values),
    )
    return Summary(
        label=run.label,
        steps=run.loss.steps[-1],
        tokens=int(tokens[-1]) if tokens else None,
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        eval_loss_best=min(evals, default=None),
        tokens_per_second=speeds[len(speeds) // 2] if speeds else None,
    )


def labels(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Label each run by its short name, or by its path where two names are the same."""
    return [
        path if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)
    ]


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
