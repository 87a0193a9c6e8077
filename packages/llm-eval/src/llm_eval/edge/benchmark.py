"""`llm-eval run` and the named commands: tasks of lm-evaluation-harness into a results folder."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from llm_eval.edge import model_folder, needles, quiet, tasks
from llm_eval.edge.engines import HF, SERVER, EngineChoice, Engines
from llm_eval.edge.local_data import LocalData
from llm_eval.edge.perplexity import ModelChoice, Outcome
from llm_eval.edge.progress import Reporter
from llm_eval.edge.run_folder import RunFolder
from llm_eval.edge.sandbox.outside import Sandbox
from llm_eval.errors import EvalError
from llm_eval.results import stable_results
from llm_eval.taskindex import require


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChoice:
    """Which tasks, how they are asked, on which data, and how much of them.

    `is_chat` asks through the model's chat template, each example a message and its answer, or
    with `is_multiturn` false all in one message; `system` is what it is told first. A `limit`
    below 1 is a share; `samples` names the documents of tasks. `generation` updates the tasks'
    own options of generation.
    `prompt` is the full name of a named benchmark's variant; `overrides` its replaced keys.
    `unsafe` runs programs that the model writes without a sandbox. `size` is that of tasks of
    ours (`llm_eval.needlebench`), which the names then are.
    """

    names: Sequence[str]
    include_path: Path | None
    num_fewshot: int | None
    limit: float | None
    data: Path | None = None
    prompt: str | None = None
    is_chat: bool = False
    overrides: Mapping[str, object] = field(default_factory=dict)
    unsafe: bool = False
    size: str | None = None
    is_multiturn: bool = True
    system: str | None = None
    generation: Mapping[str, object] = field(default_factory=dict)
    samples: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def asked(self) -> dict[str, object]:
        """What of the last four is not as usual, for the settings of a run."""
        found = {
            "multiturn": None if self.is_multiturn else False,
            "system": self.system,
            "generation": dict(self.generation) or None,
            "samples": {task: list(chosen) for task, chosen in self.samples.items()} or None,
        }
        return {name: value for name, value in found.items() if value is not None}


def run(choice: TaskChoice, model: ModelChoice, output: Path, *, overwrite: bool) -> Outcome:
    """Score the tasks: a finished folder is read back, an interrupted run is continued.

    The results depend on neither the batch size of `hf`, nor the number of processes, nor where
    a run was interrupted: they are the same bytes.
    """
    if model.scorer == HF:
        model_folder.check(model.model)
    index = tasks.index(choice.include_path)
    harness_names = () if choice.size else choice.names
    files = [file for name in harness_names for file in require(name, index).files]
    data = LocalData.open(choice.data) if choice.data else None
    engine = engine_choice(model)
    settings = {
        "command": "run",
        "tasks": list(choice.names),
        "task_files": sorted(str(file) for file in files),
        "prompt": choice.prompt,
        "data_digest": data.digest() if data else None,
        "num_fewshot": choice.num_fewshot,
        "limit": choice.limit,
        **({"size": choice.size} if choice.size else {}),
        **({"chat": True} if choice.is_chat and not choice.prompt else {}),
        **choice.asked(),
        **_engine_settings(model, engine),
    }
    with RunFolder(output, settings, overwrite=overwrite) as folder:
        if folder.is_finished:
            return Outcome(results=folder.results(), was_finished=True, num_resumed_batches=0)
        start = time.monotonic()
        if model.scorer == HF:
            model_folder.require_hf()
        if data is not None:
            quiet.offline()
        quiet.quiet()
        num_resumed = folder.num_answers
        from llm_eval.harness.templates import compiled_once

        with _programs(choice, folder), compiled_once():
            manager = tasks.manager(
                harness_names,
                index,
                choice.include_path,
                data=data,
                overrides=choice.overrides,
            )
            if choice.size:
                loaded: list[Any] = _needle_tasks(choice, choice.size, model, data)
            else:
                loaded = _load(choice, manager)
            found = _evaluate(choice, model, engine, loaded, manager, folder)
        folder.finish(stable_results(found), _samples(found), seconds=time.monotonic() - start)
        return Outcome(
            results=folder.results(), was_finished=False, num_resumed_batches=num_resumed
        )


def engine_choice(model: ModelChoice) -> EngineChoice:
    """The engine's part of a model choice."""
    if model.url is not None and model.scorer != HF:
        raise EvalError(f"--url and --scorer {model.scorer}: choose one of them")
    return EngineChoice(
        scorer=SERVER if model.url else model.scorer,
        model=model.model,
        device=model.device,
        dtype=model.dtype,
        batch_size=model.batch_size,
        max_length=model.max_length,
        threads=model.threads or os.cpu_count() or 1,
        base_url=model.url,
        retries=model.retries,
    )


def _engine_settings(model: ModelChoice, engine: EngineChoice) -> dict[str, object]:
    """What decides the scores. Of `hf` that is not the batch size; sums depend on threads."""
    settings = {**model.settings(), "scorer": engine.scorer, "url": engine.base_url}
    if engine.scorer == HF:
        del settings["batch_size"]
    if engine.scorer != SERVER:
        settings["threads"] = engine.threads
    return settings


@contextmanager
def _programs(choice: TaskChoice, folder: RunFolder) -> Iterator[None]:
    """Programs that tasks judge by the metric `code_eval` meanwhile run in a sandbox.

    It is opened for the first of them. Verdicts go to the journal too: a program near its time
    limit is judged once.
    """
    from llm_eval.harness.code import code_eval_through

    with ExitStack() as opened:

        @cache
        def sandbox() -> Sandbox:
            return opened.enter_context(Sandbox(unsafe=choice.unsafe))

        def passes(program: str) -> bool:
            key = "program:" + hashlib.sha256(program.encode()).hexdigest()[:32]
            if folder.lookup(key) is None:
                verdict = sandbox().run(program)
                folder.append([(key, [int(verdict.passed), verdict.reason])])
            return bool(folder.lookup(key)[0])

        with code_eval_through(passes):
            yield


def _needle_tasks(
    choice: TaskChoice, size: str, model: ModelChoice, data: LocalData | None
) -> list[Any]:
    if data is None:
        raise EvalError(f"{', '.join(choice.names)}: --data FOLDER wanted, see import-data")
    model_folder.require_hf()
    return needles.build(
        choice.names, size=size, data=data, model=model.model, max_length=model.max_length
    )


def _evaluate(
    choice: TaskChoice,
    model: ModelChoice,
    engine: EngineChoice,
    loaded: list[Any],
    manager: Any,
    folder: RunFolder,
) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate

    from llm_eval.harness.described import versions_alone
    from llm_eval.harness.early import hand_over_as_made
    from llm_eval.harness.journaled import JournaledLM

    generation: Any = dict(choice.generation) or None
    with (
        versions_alone(),
        Engines(engine, num_processes=model.data_parallel) as engines,
        Reporter() as reporter,
    ):
        lm = JournaledLM(
            engines.engine,
            engines.scheduler,
            folder,
            flush_every=model.batch_size,
            on_progress=reporter,
        )
        hand_over_as_made(manager.load(loaded)["tasks"].values(), lm)
        found = simple_evaluate(
            model=lm,
            tasks=loaded,
            num_fewshot=choice.num_fewshot,
            limit=choice.limit,
            samples={task: list(chosen) for task, chosen in choice.samples.items()} or None,
            gen_kwargs=generation,
            task_manager=manager,
            log_samples=True,
            apply_chat_template=choice.is_chat,
            fewshot_as_multiturn=choice.is_chat and choice.is_multiturn,
            system_instruction=choice.system,
            confirm_run_unsafe_code=True,
        )
    if found is None:
        raise EvalError("lm-evaluation-harness returned no results on this rank")
    results: dict[str, Any] = dict(found)
    for config in results["configs"].values():
        source = config.get("metadata", {}).get("config_source")
        if source:  # a path of this machine, of which the part inside lm-eval says all
            config["metadata"]["config_source"] = source.rpartition("lm_eval/tasks/")[2]
    results["config"] = {
        **results["config"],
        "model": engine.scorer,
        "model_args": {"pretrained": str(model.model), "dtype": model.dtype},
        **({"prompt": choice.prompt} if choice.prompt else {}),
    }
    return results


def _load(choice: TaskChoice, manager: Any) -> list[Any]:
    """The tasks and groups, built once; examples that were not imported are an error here."""
    from llm_eval.harness.local_tasks import LocalTask

    built = manager.build(list(choice.names))
    try:
        found = manager.load(built)["tasks"]
    except ValueError as error:  # a task that is named twice, by itself or in groups
        raise EvalError(str(error)) from error
    _require_samples(choice, found)
    for name, task in found.items():
        if getattr(task, "UNSAFE_CODE", False) and not choice.unsafe and not _is_judged_here(task):
            raise EvalError(
                f"{name}: runs what the model writes, through a runner of its own, which is no "
                "sandbox; --unsafe runs it all the same (sandboxed are tasks whose metrics use "
                "code_eval, as HumanEval's and MBPP's)"
            )
        if isinstance(task, LocalTask):
            if choice.num_fewshot is not None and task.config.num_fewshot != 0:
                task.set_config(key="num_fewshot", value=choice.num_fewshot)
            task.check_examples()
    return built


def _require_samples(choice: TaskChoice, found: Mapping[str, Any]) -> None:
    if not choice.samples:
        return
    if choice.limit is not None:
        raise EvalError("--samples and --limit: choose one of them")
    if missing := sorted(set(found) - set(choice.samples)):
        raise EvalError(f"--samples: names no document of {', '.join(missing)}, which is run")
    for task, numbers in choice.samples.items():
        if task not in found:
            raise EvalError(f"--samples: {task} is not run; these are: {', '.join(found)}")
        count = len(found[task].eval_docs)
        if max(numbers) >= count:
            raise EvalError(f"--samples: {task} has no document {max(numbers)}; it has {count}")


def _is_judged_here(task: Any) -> bool:
    from llm_eval.harness.code import is_judged_here

    metrics: dict[str, object] = getattr(task, "_metric_fn_list", {})
    return is_judged_here([*metrics.values(), getattr(task.config, "process_results", None)])


def _samples(found: dict[str, Any]) -> list[dict[str, Any]]:
    """lm-eval's rows, in one file: each says which task it belongs to."""
    return [{"task": task, **row} for task, rows in found["samples"].items() for row in rows]
