"""The `code_eval` metric that task files score programs with, over a judge of ours.

lm-eval's code tasks (HumanEval, MBPP, …) fetch it from the hub through the package `evaluate`; it
runs programs in a plain process.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from math import comb
from types import ModuleType
from typing import Any

from llm_eval.errors import EvalError

METRIC = "code_eval"
# What the metric itself allows a program, in seconds.
_TIMEOUT_S = 3.0
_PACKAGE = "evaluate"

# Whether a program runs to its last line.
Passes = Callable[[str], bool]


class CodeEval:
    """The metric's `compute`, as of evaluate 0.4."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def compute(
        self,
        *,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,  # noqa: ARG002 - programs run one at a time
        timeout: float = _TIMEOUT_S,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, object]]]]]:
        """Mean of the unbiased estimate of pass@k over the problems, and each program's verdict.

        A program is a prediction and the test of its problem (Chen et al. 2021, equation 1). Of k,
        those are left out of which a problem has fewer programs.
        """
        if timeout != _TIMEOUT_S:
            raise EvalError(
                f"{METRIC}: timeout {timeout}; the sandbox gives every program {_TIMEOUT_S:g} s"
            )
        verdicts = [
            [self._passes(f"{program}\n{reference}") for program in tried]
            for reference, tried in zip(references, predictions, strict=True)
        ]
        means = {
            f"pass@{size}": sum(_estimate(len(found), sum(found), size) for found in verdicts)
            / len(verdicts)
            for size in k
            if all(len(found) >= size for found in verdicts)
        }
        return means, {task: _listed(task, found) for task, found in enumerate(verdicts)}


@contextmanager
def code_eval_through(passes: Passes) -> Iterator[None]:
    """Let whoever loads the metric `code_eval` meanwhile get ours.

    Of the package `evaluate` this is what `load` gives; all else is the package's own, which is
    only imported when something else of it is asked for.
    """
    stand_in = _StandIn(CodeEval(passes), sys.modules.get(_PACKAGE))
    sys.modules[_PACKAGE] = stand_in
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]
        if stand_in.own is not None:
            sys.modules[_PACKAGE] = stand_in.own
        # Functions of task files would keep the metric for the next run.
        for name in [name for name, module in sys.modules.items() if _holds_metric(module)]:
            del sys.modules[name]


def is_judged_here(functions: Iterable[object]) -> bool:
    """Whether any of a task's functions is our metric's, or stands in a module that holds it."""
    # The harness keeps a metric as a bound method: `compute`, or a function's `__call__`.
    owners = [getattr(function, "__self__", function) for function in functions]
    return any(
        type(value) is CodeEval
        for owner in owners
        for value in (owner, *getattr(owner, "__globals__", {}).values())
    )


def _holds_metric(module: ModuleType) -> bool:
    values = vars(module)
    # The harness marks so what it imports for a task file.
    return "__mtime__" in values and any(type(value) is CodeEval for value in values.values())


class _StandIn(ModuleType):
    def __init__(self, metric: CodeEval, own: ModuleType | None) -> None:
        super().__init__(_PACKAGE)
        self.__spec__ = ModuleSpec(_PACKAGE, loader=None)
        self.own = own
        self._metric = metric

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """A metric by name."""
        if path == METRIC:
            return self._metric
        return self._package().load(path, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._package(), name)

    def _package(self) -> ModuleType:
        if self.own is None:
            del sys.modules[_PACKAGE]
            try:
                self.own = import_module(_PACKAGE)
            finally:
                sys.modules[_PACKAGE] = self
        return self.own


def _listed(task: int, found: Sequence[bool]) -> list[tuple[int, dict[str, object]]]:
    return [
        (
            number,
            {
                "task_id": task,
                "passed": passed,
                "result": "passed" if passed else "failed",
                "completion_id": number,
            },
        )
        for number, passed in enumerate(found)
    ]


def _estimate(tried: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of n tries hold a correct one."""
    return 1.0 - comb(tried - correct, k) / comb(tried, k)
