"""What a run measures: one line of strict JSON a step, and the curves read back from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

FILE_NAME = "metrics.jsonl"

# Left out of the line of a step that has none.
_WHERE_ASKED_FOR = ("mtp_loss", "indexer_loss", "aux_loss", "seq_aux_loss", "z_loss")

Number = int | float
Record = Mapping[str, Number | str | bool | None]


class MetricsError(ValueError):
    """A metrics line that is not one: the file, the line, what was found, what was wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimizer step. `tokens_per_second` counts all ranks; `grad_norm` is before clipping.

    `mfu`, the model FLOP utilization, is the share of the devices' peak that the model's own work
    (flops.py) takes; None where the peak is not known. `memory_bytes` is the largest of any rank:
    allocated at most so far on a device, resident on a CPU. `eta_s` is what is left of the run.
    `mtp_loss` is the mean over prediction layers of their mean token losses, without its weight.
    `indexer_loss` is the mean over layers and tokens of the divergence, without its weight.
    The losses of routers are means over layers and micro-batches, without their coefficients.
    """

    step: int
    consumed_samples: int
    consumed_tokens: int
    loss: float
    lr: float
    grad_norm: float | None
    tokens_per_second: float
    step_time_s: float
    mfu: float | None = None
    memory_bytes: int | None = None
    eta_s: float | None = None
    skipped: bool = False
    mtp_loss: float | None = None
    indexer_loss: float | None = None
    aux_loss: float | None = None
    seq_aux_loss: float | None = None
    z_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalMetrics:
    """The mean loss over the validation batches after `step` optimizer steps."""

    step: int
    eval_loss: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity over steps; a value that was not finite is NaN."""

    steps: list[int] = field(default_factory=list[int])
    values: list[float] = field(default_factory=list[float])


def write_line(metrics: StepMetrics | EvalMetrics) -> str:
    """Write one line of metrics.jsonl, newline included; NaN and infinities become text."""
    record: dict[str, Number | str | bool | None] = asdict(metrics)
    if not record.get("skipped", True):
        del record["skipped"]
    for name in _WHERE_ASKED_FOR:
        if record.get(name, 0.0) is None:
            del record[name]
    strict = {key: _strict(value) for key, value in record.items()}
    return json.dumps(strict, allow_nan=False) + "\n"


def read_lines(text: str, where: str) -> list[Record]:
    """Read what `write_line` wrote; a last line without its newline was cut off and is left out."""
    complete = text[: text.rfind("\n") + 1]
    return [_record(line, f"{where}:{n}") for n, line in enumerate(complete.splitlines(), 1)]


def keep_until(text: str, step: int, where: str) -> str:
    """Drop the lines after `step`, and a last line that was cut off."""
    kept = (record for record in read_lines(text, where) if _step(record) <= step)
    return "".join(json.dumps(record) + "\n" for record in kept)


def curve(records: Sequence[Record], name: str) -> Curve:
    """Collect `name` over the records that have it, in order of step."""
    found = Curve()
    for record in sorted((one for one in records if one.get(name) is not None), key=_step):
        found.steps.append(_step(record))
        found.values.append(_finite(record[name]))
    return found


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise MetricsError(f"{where}: not JSON ({error.msg}): {line[:60]!r}") from None
    fields: Record = cast(Record, record) if isinstance(record, dict) else {}
    if not isinstance(fields.get("step"), int):
        raise MetricsError(f"{where}: found {line[:60]!r}, wanted an object with a whole `step`")
    return fields


def _step(record: Record) -> int:
    return int(record["step"] or 0)


def _strict(value: Number | str | bool | None) -> Number | str | bool | None:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: Number | str | bool | None) -> float:
    number = float(value) if value is not None else math.nan
    return number if math.isfinite(number) else math.nan
