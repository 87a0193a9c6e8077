"""`llm-eval run` and the named commands: tasks of lm-evaluation-harness into a results folder."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_eval.edge import model_folder, quiet, tasks
from llm_eval.edge.local_data import LocalData
from llm_eval.edge.perplexity import HF, ModelChoice, Outcome, open_model
from llm_eval.edge.run_folder import RunFolder
from llm_eval.errors import EvalError
from llm_eval.results import stable_results
from llm_eval.taskindex import require


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChoice:
    """Which tasks, how they are asked, on which data, and how much of them.

    `prompt` is the full name of a named benchmark's variant; `overrides` its replaced keys.
    """

    names: Sequence[str]
    include_path: Path | None
    num_fewshot: int | None
    limit: int | None
    data: Path | None = None
    prompt: str | None = None
    is_chat: bool = False
    overrides: Mapping[str, object] = field(default_factory=dict)


def run(choice: TaskChoice, model: ModelChoice, output: Path, *, overwrite: bool) -> Outcome:
    """Score the tasks; a finished folder of the same settings is read back."""
    if model.scorer == HF:
        model_folder.check(model.model)
    index = tasks.index(choice.include_path)
    files = [file for name in choice.names for file in require(name, index).files]
    data = LocalData.open(choice.data) if choice.data else None
    settings = {
        "command": "run",
        "tasks": list(choice.names),
        "task_files": sorted(str(file) for file in files),
        "prompt": choice.prompt,
        "data_digest": data.digest() if data else None,
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
        manager = tasks.manager(
            choice.names, index, choice.include_path, data=data, overrides=choice.overrides
        )
        found = _evaluate(choice, model, manager)
        folder.finish(stable_results(found), _samples(found), seconds=time.monotonic() - start)
        return Outcome(results=folder.results(), was_finished=False, num_resumed_batches=0)


def _evaluate(choice: TaskChoice, model: ModelChoice, manager: Any) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate

    loaded = _load(choice, manager)
    found = simple_evaluate(
        model=open_model(model, None),
        tasks=loaded,
        num_fewshot=choice.num_fewshot,
        limit=choice.limit,
        batch_size=model.batch_size,
        task_manager=manager,
        log_samples=True,
        apply_chat_template=choice.is_chat,
        fewshot_as_multiturn=choice.is_chat,
    )
    if found is None:
        raise EvalError("lm-evaluation-harness returned no results on this rank")
    results: dict[str, Any] = dict(found)
    results["config"] = {
        **results["config"],
        "model": model.scorer,
        "model_args": {"pretrained": str(model.model), "dtype": model.dtype},
        **({"prompt": choice.prompt} if choice.prompt else {}),
    }
    return results


def _load(choice: TaskChoice, manager: Any) -> list[Any]:
    """The tasks and groups, built once; examples that were not imported are an error here."""
    from llm_eval.harness.local_tasks import LocalTask

    built = manager.build(list(choice.names))
    for task in manager.load(built)["tasks"].values():
        if isinstance(task, LocalTask):
            if choice.num_fewshot is not None and task.config.num_fewshot != 0:
                task.set_config(key="num_fewshot", value=choice.num_fewshot)
            task.check_examples()
    return built


def _samples(found: dict[str, Any]) -> list[dict[str, Any]]:
    """lm-eval's rows, in one file: each says which task it belongs to."""
    return [{"task": task, **row} for task, rows in found["samples"].items() for row in rows]
