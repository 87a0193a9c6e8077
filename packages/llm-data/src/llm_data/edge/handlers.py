"""Readers of records by the names that users give: formats, MindSpeed-LLM's handlers, their own.

The readers travel to worker processes; a user's own handler travels by its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar, cast

import orjson

from llm_data.config import FormatChoice, PreprocessConfig, Task
from llm_data.errors import DataError, FormatError, UsageError, did_you_mean, listed
from llm_data.messages import Conversation, Preference, Prompt, StepRewards
from llm_data.records import Batch, Place, Record, Reject, object_of
from llm_data.samples.columns import Format, check_known, mapped_columns
from llm_data.samples.dataset_info import DatasetEntry, find_entry
from llm_data.samples.detect import detect_format
from llm_data.samples.handlers import ENTRY_POINT_GROUP, HANDLERS, Handler, RecordHandler
from llm_data.samples.spec import SampleSpec
from llm_data.samples.texts import TextSpec

DATASET_INFO = "dataset_info.json"

# How many records must lack a mapped column before it counts as misspelled.
_FIRST_RECORDS = 1000
_TEXT_KEY = "text"

Body = Mapping[str, object]

Made = TypeVar("Made", str, Conversation, Preference, Prompt, StepRewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHandlerSpec(Generic[Made]):
    """How to make a user's own handler in another process: its entry point's name."""

    name: str
    task: Task
    gives: type[Made]

    def build(self) -> Callable[[Body], Made]:
        """The handler; a call that gives another kind of sample than its task's is an error."""
        handler = _load(_entry_point(self.name))

        def read(body: Body) -> Made:
            found = handler(body)
            if not isinstance(found, self.gives):
                raise UsageError(
                    f"handler {self.name} gives {type(found).__name__}, "
                    f"want {self.gives.__name__} for its task {self.task.value}"
                )
            return found

        return read


@dataclass(frozen=True, slots=True, kw_only=True)
class _First:
    """A run's first records that are objects, where the first of them is, and the first error."""

    bodies: Sequence[Body] = ()
    where: str = ""
    refused: str = ""


RecordReader = (
    SampleSpec
    | TextSpec
    | OwnHandlerSpec[str]
    | OwnHandlerSpec[Conversation]
    | OwnHandlerSpec[Preference]
    | OwnHandlerSpec[Prompt]
    | OwnHandlerSpec[StepRewards]
)


def tasks_of_handler(name: str) -> tuple[Task, ...]:
    """The tasks that a handler may serve, the usual one first; UsageError if there is none such."""
    handler = HANDLERS.get(name)
    return handler.tasks if handler else (_task_of(name, _load(_entry_point(name))),)


def handler_origin(name: str) -> str:
    """Where a user's own handler comes from: another version of it may read records differently."""
    entry = _entry_point(name)
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
    return f"{entry.value}{package}"


def record_reader(
    config: PreprocessConfig,
    batches: Iterable[Batch],
    *,
    where: Callable[[Place], str] = lambda place: f"record {place.number}",
) -> RecordReader | None:
    """What reads a run's records, None if a text stands in its key.

    `batches` are the run's, from its beginning, as whole records; only the first are taken, and
    only where `--format auto` or `--map-keys` needs to see some. `where` says a place in messages.
    """
    if config.handler is not None:
        tasks = tasks_of_handler(config.handler)
        if config.task not in tasks:
            wanted = " or ".join(f"--task {task.value}" for task in tasks)
            raise UsageError(
                f"--handler-name {config.handler} has no meaning with --task {config.task.value}, "
                f"want {wanted}"
            )
        if config.handler not in HANDLERS:
            return _own(config)
        if HANDLERS[config.handler].reads_dataset_info and config.format == "auto":
            raise UsageError(
                f"--handler-name {config.handler} needs --dataset-dir: the folder of "
                f"{DATASET_INFO}; INPUT names entries of it"
            )
    check_known(config.map_keys)
    first = _look(batches, where) if _must_look(config) else _First()
    _check_mapped(config.map_keys, first.bodies)
    record_format = _format(config, first)
    if record_format is None:
        return None
    map_keys = {**_handler(config).map_keys, **config.map_keys}
    if config.task is Task.PRETRAIN:
        # MindSpeed-LLM's --json-keys names the column of messages.
        is_chat = record_format in (Format.SHAREGPT, Format.OPENAI)
        if is_chat and config.key != _TEXT_KEY:
            map_keys = {"messages": config.key, **map_keys}
        return TextSpec(format=record_format, map_keys=map_keys)
    return SampleSpec(
        task=config.task,
        format=record_format,
        map_keys=map_keys,
        extra_keys=tuple(config.extra_keys),
        placeholder=config.placeholder_token,
        is_detected=config.format == "auto" and _handler(config).format is None,
    )


def with_dataset_info(config: PreprocessConfig, folder: Path) -> PreprocessConfig:
    """The run that entries of a dataset_info.json describe; the inputs are their names.

    Names may stand in one input with commas between them, as in MindSpeed-LLM. What the options
    map stays mapped so.
    """
    names = [name.strip() for each in config.inputs for name in str(each).split(",")]
    entries = read_dataset_info(folder, names)
    first, *others = entries
    for entry in others:
        if _reading(entry) != _reading(first):
            raise UsageError(
                f"{folder / DATASET_INFO}: {first.name} and {entry.name} read differently "
                "(formatting, columns, tags, ranking, subset, split or folder); make a dataset of "
                "each, then llm-data merge or blend"
            )
    if first.is_ranking is not (config.task is Task.PAIRWISE):
        raise UsageError(
            f"{folder / DATASET_INFO}: {first.name} has ranking {str(first.is_ranking).lower()}, "
            f"--task {config.task.value} wants the other; ranking is for --task pairwise"
        )
    if config.format not in ("auto", first.format.value):
        raise UsageError(
            f"--format {config.format}: {folder / DATASET_INFO} says {first.name} is "
            f"{first.format.value}"
        )
    parameters: dict[str, object] = {}
    if first.subset:
        parameters["name"] = first.subset
    if first.folder:
        parameters["data_dir"] = first.folder
    return replace(
        config,
        inputs=[entry.hub or folder / (entry.file or "") for entry in entries],
        format=cast("FormatChoice", first.format.value),
        map_keys={**first.map_keys, **config.map_keys},
        split=config.split or first.split,
        datasets_params={**parameters, **config.datasets_params},
    )


def read_dataset_info(folder: Path, names: Sequence[str]) -> list[DatasetEntry]:
    """The entries of these names, in their order."""
    file = folder / DATASET_INFO
    if not file.is_file():
        raise UsageError(f"--dataset-dir {folder}: no {DATASET_INFO} in it")
    try:
        info: object = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise FormatError(f"{file}: not JSON: {error}") from None
    if not isinstance(info, dict):
        raise FormatError(f"{file}: want a JSON object of datasets by their names")
    try:
        return [find_entry(cast("Body", info), name) for name in names]
    except DataError as error:
        raise type(error)(f"{file}: {error}") from None


def _own(config: PreprocessConfig) -> RecordReader:
    """The spec of a user's own handler, which has no options of the formats."""
    assert config.handler is not None
    if config.map_keys or config.format != "auto":
        raise UsageError(
            f"--handler-name {config.handler} reads records itself: --format and --map-keys have "
            "no meaning for it"
        )
    name, task = config.handler, config.task
    match task:
        case Task.PRETRAIN:
            return OwnHandlerSpec(name=name, task=task, gives=str)
        case Task.SFT:
            return OwnHandlerSpec(name=name, task=task, gives=Conversation)
        case Task.PAIRWISE:
            return OwnHandlerSpec(name=name, task=task, gives=Preference)
        case Task.PROMPT:
            return OwnHandlerSpec(name=name, task=task, gives=Prompt)
        case Task.PRM:
            return OwnHandlerSpec(name=name, task=task, gives=StepRewards)


def _handler(config: PreprocessConfig) -> Handler:
    return Handler(tasks=(config.task,)) if config.handler is None else HANDLERS[config.handler]


def _format(config: PreprocessConfig, first: _First) -> Format | None:
    """The format, None for a text in the run's key; from the first record if nothing says it."""
    fixed = _handler(config).format
    if fixed is not None:
        if config.format not in ("auto", fixed.value):
            raise UsageError(
                f"--format {config.format}: --handler-name {config.handler} reads {fixed.value}"
            )
        return fixed
    if config.task is Task.PRM:
        if config.format != "auto":
            raise UsageError(
                f"--format {config.format} has no meaning with --task prm: its records have "
                "'input' with 'value' or 'label'"
            )
        return Format.STEPS
    if config.format not in ("auto", "text"):
        return Format(config.format)
    if config.task is Task.PRETRAIN:
        return None
    if not first.bodies:
        refused = f"{first.refused}; " if first.refused else ""
        raise DataError(
            f"--format auto: the input has no record to tell the format from; {refused}"
            "--format names it"
        )
    return detect_format(
        first.bodies[0], task=config.task, map_keys=config.map_keys, where=first.where
    )


def _must_look(config: PreprocessConfig) -> bool:
    if mapped_columns(config.map_keys):
        return True
    is_open = config.format == "auto" and _handler(config).format is None
    return is_open and config.task not in (Task.PRETRAIN, Task.PRM)


def _check_mapped(map_keys: Mapping[str, object], first: Sequence[Body]) -> None:
    """A column that none of the first records has is taken for misspelled."""
    known = dict.fromkeys(key for body in first for key in body)
    for column in mapped_columns(map_keys) if first else ():
        if column not in known:
            raise UsageError(
                f"--map-keys: none of the first {len(first)} records has {column!r}; they have "
                f"{listed(known, most=20)}{did_you_mean(column, known)}"
            )


def _look(batches: Iterable[Batch], where: Callable[[Place], str]) -> _First:
    """The first records, as many as a misspelled column must be missing from."""
    bodies: list[Body] = []
    place = refused = ""
    for item in (item for batch in batches for item in batch.items()):
        body = object_of(item) if isinstance(item, Record) else item
        if isinstance(body, Reject):
            refused = refused or f"{where(body.place)}: {body.detail}"
            continue
        place = place or where(item.place)
        bodies.append(body)
        if len(bodies) == _FIRST_RECORDS:
            break
    return _First(bodies=bodies, where=place, refused=refused)


def _reading(entry: DatasetEntry) -> tuple[object, ...]:
    """What entries must share to be read in one run."""
    return (
        entry.format,
        entry.map_keys,
        entry.is_ranking,
        entry.subset,
        entry.split,
        entry.folder,
    )


def _entry_point(name: str) -> EntryPoint:
    """The one entry point of a name; UsageError with every handler there is."""
    own = list(entry_points(group=ENTRY_POINT_GROUP))
    found = [entry for entry in own if entry.name == name]
    if len({entry.value for entry in found}) > 1:
        packages = listed(entry.dist.name if entry.dist else entry.value for entry in found)
        raise UsageError(f"--handler-name {name}: {packages} each have one of this name")
    if found:
        return found[0]
    known = [*HANDLERS, *sorted({entry.name for entry in own})]
    raise UsageError(
        f"--handler-name {name}: no such handler; want {listed(known, most=len(known))}, or an "
        f"entry point of the group {ENTRY_POINT_GROUP!r} in an installed package"
        f"{did_you_mean(name, known)}"
    )


def _load(entry: EntryPoint) -> RecordHandler:
    """What an entry point names; a class is called."""
    package = entry.dist.name if entry.dist else "its package"
    try:
        loaded: object = entry.load()
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"handler {entry.name}: {entry.value} of {package} does not load: {error}"
        ) from error
    handler = loaded() if isinstance(loaded, type) else loaded
    if not callable(handler) or not hasattr(handler, "task"):
        raise DataError(
            f"handler {entry.name}: {entry.value} of {package} is a {type(handler).__name__}, "
            "want something to call with a record that has the attribute task"
        )
    return cast("RecordHandler", handler)


def _task_of(name: str, handler: RecordHandler) -> Task:
    try:
        return Task(handler.task)
    except ValueError:
        choices = listed(task.value for task in Task)
        raise DataError(f"handler {name}: its task is {handler.task!r}, want {choices}") from None
