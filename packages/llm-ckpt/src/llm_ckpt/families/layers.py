"""Per-layer facts: what codecs say of each layer, gathered into arch.json's run-length code.

One codec gives `layers` (runs); others may overrule one column of it under `layers.window`,
`layers.rope`, `layers.feed_forward` or `layers.mixer`: a list with a value a layer, or one value.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import cast

from llm_ckpt.errors import ArchError
from llm_ckpt.families.fields import Facts, Json

_COLUMNS = tuple(f"layers.{name}" for name in ("mixer", "feed_forward", "window", "rope"))


def settle(facts: Facts) -> Facts:
    """The facts with every column put into `layers`."""
    said = {key: facts[key] for key in _COLUMNS if key in facts}
    if not said:
        return facts
    rows = [dict(run) for run in facts["layers"] for _ in range(run["count"])]
    for key, value in said.items():
        values = cast("list[Json]", value) if isinstance(value, list) else [value] * len(rows)
        for row, item in zip(rows, values, strict=True):
            row[key.removeprefix("layers.")] = item
    kept = {key: value for key, value in facts.items() if key not in said}
    return kept | {"layers": compress(rows)}


def compress(rows: Iterable[Json]) -> list[Json]:
    """One entry a layer → runs of equal layers."""
    runs: list[Json] = []
    for row, equal in groupby(rows, key=lambda row: {**row, "count": 1}):
        runs.append({**row, "count": sum(1 for _ in equal)})
    return runs


def check_length(values: Sequence[Json], count: int, *, key: str, where: str) -> None:
    """Refuse a list of config.json that does not have one entry a layer."""
    if len(values) != count:
        raise ArchError(f"{where}: {key} has {len(values)} entries, num_hidden_layers is {count}")
