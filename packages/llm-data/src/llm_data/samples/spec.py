"""Records of any format as the samples of a task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

import orjson

from llm_data.config import STEP_PLACEHOLDER, Task
from llm_data.errors import UsageError, listed
from llm_data.messages import Conversation, Preference, Prompt, Sample
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.alpaca import AlpacaReader
from llm_data.samples.chat import ChatReader
from llm_data.samples.columns import (
    KTO_REFUSED,
    AlpacaColumns,
    ChatColumns,
    Columns,
    Format,
    StepColumns,
    columns_of,
)
from llm_data.samples.corpora import CorpusReader, belle, leetcode, moss
from llm_data.samples.order import check_turns, is_empty
from llm_data.samples.reading import Asked, FormatReader
from llm_data.samples.steps import StepReader
from llm_data.samples.values import Body

# The further column of prompts that is the answer the record has, as in MindSpeed-LLM.
LABELS = "labels"

_FORMATS: Mapping[Format, Callable[[Columns], FormatReader]] = MappingProxyType(
    {
        Format.ALPACA: lambda columns: AlpacaReader(cast("AlpacaColumns", columns)),
        Format.SHAREGPT: lambda columns: ChatReader(cast("ChatColumns", columns)),
        Format.OPENAI: lambda columns: ChatReader(cast("ChatColumns", columns)),
        Format.BELLE: lambda _: CorpusReader(belle),
        Format.MOSS: lambda _: CorpusReader(moss),
        Format.LEETCODE: lambda _: CorpusReader(leetcode),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """How to make the reader of a run's samples in another process.

    `map_keys` are those of the format, `extra_keys` further columns of prompts, `placeholder` ends
    the steps of `prm`. `is_detected` says that `--format auto` chose the format.
    """

    task: Task
    format: Format
    map_keys: Mapping[str, object] = field(default_factory=dict[str, object])
    extra_keys: tuple[str, ...] = ()
    placeholder: str = STEP_PLACEHOLDER
    is_detected: bool = False

    def __post_init__(self) -> None:
        formats = (Format.STEPS,) if self.task is Task.PRM else tuple(_FORMATS)
        if self.task is Task.PRETRAIN or self.format not in formats:
            wanted = listed(each.value for each in formats)
            raise UsageError(
                f"--task {self.task.value} takes no records of the format {self.format.value}; "
                f"want {'TextSpec' if self.task is Task.PRETRAIN else wanted}"
            )
        columns_of(self.format, self.map_keys)

    def build(self) -> Callable[[Body], Sample]:
        """The reader: a record's object in, a sample out, or RecordRefusedError."""
        columns = columns_of(self.format, self.map_keys)
        read = self._reader(columns)
        kto_tag = columns.kto_tag if isinstance(columns, AlpacaColumns | ChatColumns) else ""

        def sample(body: Body) -> Sample:
            if kto_tag and body.get(kto_tag) is not None:
                raise RecordRefusedError(Reason.WRONG_VALUE, KTO_REFUSED)
            try:
                return read(body)
            except RecordRefusedError as error:
                if self.is_detected and error.reason is Reason.MISSING_KEY:
                    detail = f"{error.detail}; --format auto took {self.format.value} for all"
                    raise RecordRefusedError(error.reason, detail) from None
                raise

        return sample

    def _reader(self, columns: Columns) -> Callable[[Body], Sample]:
        if isinstance(columns, StepColumns):
            return StepReader(columns, placeholder=self.placeholder).rewards
        records = _FORMATS[self.format](columns)
        match self.task:
            case Task.PAIRWISE:
                return lambda body: _preference(records, body)
            case Task.PROMPT:
                return lambda body: _prompt(records, body, self.extra_keys)
            case _:
                return lambda body: _conversation(records, body)


def _conversation(records: FormatReader, body: Body) -> Conversation:
    found = records.conversation(body)
    check_turns(found.messages, last=("assistant",))
    return found


def _preference(records: FormatReader, body: Body) -> Preference:
    found = records.preference(body)
    check_turns(found.prompt.messages, last=("user", "tool"))
    for name, answer in (("chosen", found.chosen), ("rejected", found.rejected)):
        if is_empty(answer):
            raise RecordRefusedError(Reason.EMPTY, f"the {name} answer has no text")
    return found


def _prompt(records: FormatReader, body: Body, extra_keys: tuple[str, ...]) -> Prompt:
    found = records.asked(body)
    check_turns(found.prompt.messages, last=("user", "tool"))
    extra = {key: text for key in extra_keys if (text := _extra(key, body, found)) is not None}
    return Prompt(conversation=found.prompt, extra=extra)


def _extra(key: str, body: Body, found: Asked) -> str | None:
    """A column as text, as JSON if it is no string; None if the record does not have it."""
    if key == LABELS and found.answer is not None:
        return found.answer.content
    if key not in body:
        return None
    value = body[key]
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value).decode()
