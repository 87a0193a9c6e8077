"""Records as one text each, for pretraining."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

from llm_data.errors import UsageError
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.columns import AlpacaColumns, ChatColumns, Columns, Format, columns_of
from llm_data.samples.values import Body, list_of, object_of, optional, required, text_of

TextFunction = Callable[[Body], str]

# What MindSpeed-LLM's AlpacaPretrainHandler writes. Without an input it has the word None.
_ALPACA_START = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "USER: Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
_ALPACA_INPUT = "\n\n### Input:\n"
_ALPACA_ANSWER = "\n\n### Response: ASSISTANT: "


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """How to make the reader of a pretraining text in another process."""

    format: Format
    map_keys: Mapping[str, object] = field(default_factory=dict[str, object])

    def __post_init__(self) -> None:
        if self.format not in _TEXTS:
            choices = ", ".join(each.value for each in _TEXTS)
            raise UsageError(
                f"the format {self.format.value} gives no text to pretrain on; want {choices}"
            )
        columns_of(self.format, self.map_keys)

    def build(self) -> TextFunction:
        """The reader: a record's object in, its text out, or RecordRefusedError."""
        return _TEXTS[self.format](columns_of(self.format, self.map_keys))


def _alpaca(columns: Columns) -> TextFunction:
    names = cast("AlpacaColumns", columns)

    def text(body: Body) -> str:
        asked = text_of(required(body, names.prompt), repr(names.prompt))
        given = text_of(optional(body, names.query), repr(names.query))
        answer = text_of(required(body, names.response), repr(names.response))
        if not answer.strip():
            raise RecordRefusedError(Reason.EMPTY, f"{names.response!r} has no text")
        middle = f"{_ALPACA_INPUT}{given}" if given else ""
        return f"{_ALPACA_START}{asked}{middle}{_ALPACA_ANSWER}{answer}"

    return text


def _messages(columns: Columns) -> TextFunction:
    """The texts of all messages, with nothing between them."""
    names = cast("ChatColumns", columns)

    def text(body: Body) -> str:
        column = next((name for name in names.messages if name in body), names.messages[0])
        turns = list_of(required(body, column), repr(column))
        return "".join(_content(turn, number) for number, turn in enumerate(turns, 1))

    return text


def _content(turn: object, number: int) -> str:
    where = f"message {number}"
    body = object_of(turn, where)
    key = "value" if body.get("value") is not None else "content"
    return text_of(required(body, key, what=where), f"{where}, {key!r}")


def _stack_overflow(_columns: Columns) -> TextFunction:
    def text(body: Body) -> str:
        title, question, answer = (
            text_of(required(body, key), repr(key))
            for key in ("title", "question_body", "answer_body")
        )
        return f"In python, {title}\n### Question:\n{question}\n### Response:\n{answer}\n"

    return text


_TEXTS: Mapping[Format, Callable[[Columns], TextFunction]] = MappingProxyType(
    {
        Format.ALPACA: _alpaca,
        Format.SHAREGPT: _messages,
        Format.OPENAI: _messages,
        Format.STACK_OVERFLOW: _stack_overflow,
    }
)
