"""Requests handed to the model as soon as a task has made them.

lm-eval's evaluator makes the requests of all tasks, minutes for MMLU's 14,000 questions, before it
asks for the first score.
"""

from collections.abc import Callable, Iterable
from typing import Any

from llm_eval.errors import EvalError
from llm_eval.harness.journaled import JournaledLM


def hand_over_as_made(tasks: Iterable[Any], lm: JournaledLM) -> None:
    """Have each lm-eval task tell `lm` of its requests when the evaluator has it make them.

    EvalError for a task that cannot make them, as with more examples than its data holds.
    """
    for task in tasks:
        task.build_all_requests = _then_told(task.build_all_requests, task, lm)


def _then_told(build: Callable[..., None], task: Any, lm: JournaledLM) -> Callable[..., None]:
    def build_all_requests(**options: Any) -> None:
        try:
            build(**options)
        except EvalError:
            raise
        # Whatever a task file's templates and functions make the harness raise.
        except Exception as error:
            wanted = f" with {task.config.num_fewshot} examples" if task.config.num_fewshot else ""
            raise EvalError(
                f"{task.config.task}: its prompts cannot be made{wanted}: "
                f"{type(error).__name__}: {error}"
            ) from error
        lm.expect(task.instances)

    return build_all_requests
