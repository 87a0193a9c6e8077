"""`llm-train plan`: a config's plan, printed, without torch and without a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llm_train.edge.config_file import load
from llm_train.edge.start import checked, fewest_ranks
from llm_train.plan import make_plan
from llm_train.plan.report import document, report


def plan_text(
    path: Path, overrides: Sequence[str], *, world_size: int | None, is_json: bool
) -> str:
    """The plan of the run at `path`, in tables or as JSON.

    Raises ConfigError for a layout that cannot be.
    """
    config = load(path, overrides)
    ranks = world_size or fewest_ranks(config)
    plan = make_plan(config, checked(config, path, ranks), ranks)
    return json.dumps(document(plan), indent=2) if is_json else report(plan)
