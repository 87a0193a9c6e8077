"""The harness' own task files over local data, with keys replaced.

`Manager` is lm-eval's TaskManager with two hooks at the point where a task is built: where its
rows come from, and which keys a prompt variant replaces.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from llm_eval.errors import EvalError

# Keys of a variant that belong to a group, not to its tasks.
_GROUP_KEYS = frozenset({"aggregate_metric_list"})


class Rows(Protocol):
    """Local data: the rows of each split of a data set of the hub."""

    def rows(self, dataset: str, config: str | None) -> dict[str, list[dict[str, object]]]:
        """Raises EvalError when the data set is not there."""
        ...


class LocalTask(ConfigurableTask):
    """A task of the harness whose rows come from a local folder instead of the hub."""

    def __init__(self, config: dict[str, Any], data: Rows) -> None:
        self._data = data
        self.absent_splits: frozenset[str] = frozenset()
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Rows of the local data; a split that only examples would come from may be empty."""
        if callable(self.config.custom_dataset) or self.DATASET_PATH in ("json", "csv", "text"):
            super().download(dataset_kwargs, **kwargs)
            return
        name = str(self.DATASET_PATH)
        rows = self._data.rows(name, self.DATASET_NAME)
        found = {split: Dataset.from_list(listed) for split, listed in rows.items()}
        wanted = {
            *(self.config.training_split, self.config.validation_split),
            *(self.config.test_split, self.fewshot_cfg.split),
        } - {None}
        evaluated = self.config.test_split or self.config.validation_split
        if evaluated not in found:
            raise EvalError(
                f"{self.config.task}: the local data of {name} has no split {evaluated!r} "
                f"(found {', '.join(found)}); import it with llm-eval import-data"
            )
        self.absent_splits = frozenset(str(split) for split in wanted - set(found))
        empty = found[evaluated].select([])
        splits: Any = {**found, **dict.fromkeys(self.absent_splits, empty)}
        self.dataset = DatasetDict(splits)

    def check_examples(self) -> None:
        """Raise when examples are wanted from a split that was not imported."""
        source = self.fewshot_cfg.split or self.config.training_split
        if self.config.num_fewshot and source in self.absent_splits:
            raise EvalError(
                f"{self.config.task}: wants {self.config.num_fewshot} examples of the split "
                f"{source!r}, which was not imported; import it too, or pass --num-fewshot 0"
            )


class _Factory(TaskFactory):
    def __init__(self, *, data: Rows | None, overrides: Mapping[str, object]) -> None:
        super().__init__()
        self._data = data
        self._task_overrides = {k: v for k, v in overrides.items() if k not in _GROUP_KEYS}
        self._group_overrides = {k: v for k, v in overrides.items() if k in _GROUP_KEYS}

    def _build_task(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        try:
            return self._built(entry, overrides)
        except EvalError:
            raise
        # Whatever a task file's templates, functions and data make the libraries raise.
        except Exception as error:
            where = f" ({entry.yaml_path})" if entry.yaml_path else ""
            raise EvalError(f"task {entry.name}{where}: {_reason(error)}") from error

    def _built(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        config = self._load_full_config(entry, overrides)
        if self._data is None or "class" in config:
            return super()._build_task(entry, overrides)
        kept = {k: v for k, v in config.items() if k not in ("tag", "group", "task_list")}
        return LocalTask(kept, self._data)

    def _build_group(
        self, group_name: str, raw_cfg: Any, overrides: dict[str, Any] | None, registry: Any
    ) -> Any:
        replaced = {k: v for k, v in self._group_overrides.items() if k in raw_cfg}
        return super()._build_group(group_name, {**raw_cfg, **replaced}, overrides, registry)

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> Any:
        config = super()._load_full_config(entry, overrides)
        if "task" in config and not isinstance(config["task"], list):
            config |= deepcopy(self._task_overrides)
        return config


class Manager(TaskManager):
    """A TaskManager over `folders` that builds tasks as the module's docstring says."""

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        data: Rows | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(include_defaults=False, include_path=list(folders))
        self._factory = _Factory(data=data, overrides=overrides or {})

    def build(self, names: Sequence[str]) -> list[Any]:
        """The tasks and groups of these names; a tag becomes its tasks.

        EvalError for a task that cannot be built, and a group that holds none or itself.
        """
        built = [self._loaded(name) for name in names]
        return [item for made in built for item in (made if isinstance(made, list) else [made])]

    def _loaded(self, name: str) -> Any:
        try:
            found = self._load_spec(name)
        except RecursionError as error:
            raise EvalError(f"group {name}: holds itself, directly or through another") from error
        parts = found if isinstance(found, list) else [found]
        if not self.load(parts)["tasks"]:
            raise EvalError(f"group {name}: holds no task")
        return found


def _reason(error: Exception) -> str:
    """What was raised, and below it what a library had found first."""
    if isinstance(error, StopIteration):
        return "its data file is empty"
    first = error
    while isinstance(first.__cause__, Exception):
        first = first.__cause__
    below = "" if str(first) in str(error) else f" ({first})"
    return f"{type(error).__name__}: {error}{below}"
