"""Names for a task and a format: MindSpeed-LLM's handlers, and what a user's own one is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from llm_data.config import Task
from llm_data.messages import Sample
from llm_data.samples.columns import Format

ENTRY_POINT_GROUP = "llm_data.handlers"


class RecordHandler(Protocol):
    """A handler of one's own: what an entry point of the group `llm_data.handlers` names.

    `task` is one of `Task`'s values. A call makes of a record what the task wants: a text for
    `pretrain`, a Conversation for `sft`, Preference, Prompt or StepRewards. It refuses a record
    with `RecordRefusedError`. A class is called without arguments first. Worker processes load the
    entry point again: it must be importable there and give the same result every time.
    """

    @property
    def task(self) -> str:
        """What its results are for."""
        ...

    def __call__(self, record: Mapping[str, object], /) -> Sample | str:
        """What the task wants of the record."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One of MindSpeed-LLM's names. `tasks` are those it may serve, the usual one first.

    `format` None leaves the format to the options; `map_keys` is what it maps unless the user does;
    `reads_dataset_info` says that INPUT names entries of a dataset_info.json.
    """

    tasks: tuple[Task, ...]
    format: Format | None = None
    map_keys: Mapping[str, object] = field(default_factory=dict[str, object])
    reads_dataset_info: bool = False


# Their handlers read these columns only if they are mapped; ours without a handler where they are.
_ALPACA_OFF: Mapping[str, object] = {"system": "", "history": "", "tools": ""}
_SHAREGPT_OFF: Mapping[str, object] = {"system": "", "tools": ""}


def _alpaca(task: Task) -> Handler:
    return Handler(tasks=(task,), format=Format.ALPACA, map_keys=_ALPACA_OFF)


def _sharegpt(task: Task) -> Handler:
    return Handler(tasks=(task,), format=Format.SHAREGPT, map_keys=_SHAREGPT_OFF)


def _corpus(record_format: Format, task: Task = Task.SFT) -> Handler:
    return Handler(tasks=(task,), format=record_format)


HANDLERS: Mapping[str, Handler] = MappingProxyType(
    {
        "GeneralPretrainHandler": Handler(tasks=(Task.PRETRAIN,)),
        "AlpacaPretrainHandler": Handler(tasks=(Task.PRETRAIN,), format=Format.ALPACA),
        "SharegptPretrainHandler": Handler(tasks=(Task.PRETRAIN,), format=Format.SHAREGPT),
        "StackOverflowPythonPretrainHandler": _corpus(Format.STACK_OVERFLOW, Task.PRETRAIN),
        "AlpacaStyleInstructionHandler": _alpaca(Task.SFT),
        "SharegptStyleInstructionHandler": _sharegpt(Task.SFT),
        "OpenAIInstructionHandler": Handler(
            tasks=(Task.SFT,), format=Format.OPENAI, map_keys={"system": ""}
        ),
        "LlamaFactoryInstructionHandler": Handler(
            tasks=(Task.SFT, Task.PAIRWISE, Task.PROMPT), reads_dataset_info=True
        ),
        "HunyuanInstructionHandler": _sharegpt(Task.SFT),
        "GeneralInstructionHandler": _alpaca(Task.SFT),
        "BelleMultiTurnInstructionHandler": _corpus(Format.BELLE),
        "MOSSMultiTurnHandler": _corpus(Format.MOSS),
        "MOSSInstructionHandler": _corpus(Format.MOSS),
        "LeetcodePythonInstructionHandler": _corpus(Format.LEETCODE),
        "AlpacaStylePairwiseHandler": _alpaca(Task.PAIRWISE),
        "SharegptStylePairwiseHandler": _sharegpt(Task.PAIRWISE),
        "AlpacaStyleProcessRewardHandler": Handler(tasks=(Task.PRM,), format=Format.STEPS),
        "PPOAlpacaStyleInstructionHandler": _alpaca(Task.PROMPT),
        "R1AlpacaStyleInstructionHandler": _alpaca(Task.PROMPT),
        "R1SharegptStyleInstructionHandler": _sharegpt(Task.PROMPT),
    }
)
