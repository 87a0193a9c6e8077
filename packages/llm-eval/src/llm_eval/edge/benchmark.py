"""`llm-eval run`: any task of lm-evaluation-harness on a model, into a results folder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_eval.edge import model_folder, quiet, tasks
from llm_eval.edge.perplexity import HF, ModelChoice, Outcome, open_model
from llm_eval.edge.run_folder import RunFolder
from llm_eval.errors import EvalError
from llm_eval.results import stable_results
from llm_eval.taskindex import require


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChoice:
    """Which tasks, and how much of them."""

    names: Sequence[str]
    include_path: Path | None
    num_fewshot: int | None
    limit: int | None


def run(choice: TaskChoice, model: ModelChoice, output: Path, *, overwrite: bool) -> Outcome:
    """Score the tasks; a finished folder of the same settings is read back."""
    if model.scorer == HF:
        model_folder.check(model.model)
    index = tasks.index(choice.include_path)
    files = [file for name in choice.names for file in require(name, index).files]
    settings = {
        "command": "run",
        "tasks": list(choice.names),
        "task_files": sorted(str(file) for file in files),
        "num_fewshot": choice.num_fewshot,
        "limit": choice.limit,
        **model.settings(),
    }
    with RunFolder(output, settings, overwrite=overwrite) as folder:
        if folder.is_finished:
            return Outcome(results=folder.results(), was_finished=True, num_resumed_batches=0)
        start = time.monotonic()
        if model.scorer == HF:
            model_folder.require_hf()
        quiet.quiet()
        manager = tasks.manager(choice.names, index, choice.include_path)
        found = _evaluate(choice, model, manager)
        folder.finish(stable_results(found), _samples(found), seconds=time.monotonic() - start)
        return Outcome(results=folder.results(), was_finished=False, num_resumed_batches=0)


def _evaluate(choice: TaskChoice, model: ModelChoice, manager: Any) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate

    found = simple_evaluate(
        model=open_model(model, None),
        tasks=list(choice.names),
        num_fewshot=choice.num_fewshot,
        limit=choice.limit,
        batch_size=model.batch_size,
        task_manager=manager,
        log_samples=True,
    )
    if found is None:
        raise EvalError("lm-evaluation-harness returned no results on this rank")
    results: dict[str, Any] = dict(found)
    results["config"] = {
        **results["config"],
        "model": model.scorer,
        "model_args": {"pretrained": str(model.model), "dtype": model.dtype},
    }
    return results


def _samples(found: dict[str, Any]) -> list[dict[str, Any]]:
    """lm-eval's rows, in one file: each says which task it belongs to."""
    return [{"task": task, **row} for task, rows in found["samples"].items() for row in rows]
