"""Results in lm-evaluation-harness' own layout, as bytes that depend on scores alone."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

# What simple_evaluate adds that differs from run to run or from machine to machine.
_VOLATILE = frozenset(
    {"date", "git_hash", "upper_git_hash", "pretty_env_info", "total_evaluation_time_seconds"}
)

# In what Python writes of functions and objects: another one in each process.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def stable_results(results: Mapping[str, object]) -> dict[str, object]:
    """`results` without samples, times, git states and descriptions of the machine."""
    return {k: v for k, v in results.items() if k != "samples" and k not in _VOLATILE}


def to_json(value: object) -> bytes:
    """Indented JSON with a final newline; a number JSON cannot hold becomes null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def to_jsonl(rows: Iterable[object]) -> bytes:
    """One compact JSON object per line."""
    lines = (json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _finite(value: object) -> object:
    """`value` in JSON's own types: infinities become null, unknown objects their text.

    Functions among them: a task's own, which lm-eval writes as they print, with their addresses.
    """
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return {str(k): _finite(v) for k, v in mapping.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("Sequence[object]", value)]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return _ADDRESS.sub("", str(value))
