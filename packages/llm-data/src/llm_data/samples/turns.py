"""Messages of ShareGPT and OpenAI records."""

import re
from collections.abc import Mapping
from typing import Literal

from llm_data.errors import did_you_mean, listed
from llm_data.messages import Message, Role, ToolCall
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.calls import calls_of, written_calls
from llm_data.samples.columns import Tags
from llm_data.samples.values import Body, is_list, object_of, required, text_of, wrong_type

# `call` is an assistant's turn that is nothing but calls, written as JSON.
_Part = Literal["system", "user", "assistant", "tool", "call"]

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TRAINED_KEYS = ("weight", "train")
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


class TurnReader:
    """Messages by their tags. An answer's text stays as it is: its thoughts are a template's
    matter, except where a key of their own holds them.
    """

    def __init__(self, tags: Tags) -> None:
        self._tags = tags
        parts: tuple[tuple[_Part, tuple[str, ...]], ...] = (
            ("call", tags.function_tag),
            ("tool", tags.observation_tag),
            ("system", tags.system_tag),
            ("assistant", tags.assistant_tag),
            ("user", tags.user_tag),
        )
        self._parts: Mapping[str, _Part] = {word: part for part, words in parts for word in words}

    def is_message(self, value: object) -> bool:
        """Whether a value looks like a message at all."""
        return isinstance(value, dict) and self._tags.role_tag in value

    def read(self, value: object, where: str) -> Message:
        """The message; `where` says in an error which one it is."""
        body = object_of(value, where)
        part = self._part(body, where)
        text = body.get(self._tags.content_tag)
        if len(body) == 2 and isinstance(text, str) and part != "call":
            # Most messages are no more than this.
            return Message(role=part, content=text)
        calls = _calls(body, where) if part == "assistant" else ()
        thought = _reasoning(body, where) if part in ("assistant", "call") else None
        content = self._content(body, where, may_lack=bool(calls) or thought is not None)
        if part == "call":
            thought, content = _split(content) if thought is None else (thought, content)
            calls, content = written_calls(content, where), ""
        role: Role = "assistant" if part == "call" else part
        is_answer = role == "assistant"
        return Message(
            role=role,
            content=content,
            thought=thought,
            tool_calls=calls,
            tool_call_id=_optional_text(body, "tool_call_id", where) if role == "tool" else None,
            name=_optional_text(body, "name", where),
            is_trained=_is_trained(body, where) if is_answer else True,
        )

    def _part(self, body: Body, where: str) -> _Part:
        key = self._tags.role_tag
        word = required(body, key, what=where)
        if not isinstance(word, str):
            raise wrong_type(f"{where}, {key!r}", word, "a string")
        part = self._parts.get(word)
        if part is None:
            raise RecordRefusedError(
                Reason.UNKNOWN_ROLE,
                f"{where}, {key!r} is {word!r}, want {listed(self._parts)}"
                f"{did_you_mean(word, self._parts)}",
            )
        return part

    def _content(self, body: Body, where: str, *, may_lack: bool) -> str:
        key = self._tags.content_tag
        value = body.get(key) if may_lack else required(body, key, what=where)
        where = f"{where}, {key!r}"
        if not is_list(value):
            return text_of(value, where)
        return "".join(
            _part_text(part, f"{where}, part {number}") for number, part in enumerate(value, 1)
        )


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    body = object_of(part, where)
    kind = body.get("type", "text")
    if kind not in _TEXT_PARTS:
        detail = f"{where} is of type {kind!r}, want text: samples are text only"
        raise RecordRefusedError(Reason.WRONG_VALUE, detail)
    return text_of(required(body, "text", what=where), f"{where}, 'text'")


def _calls(body: Body, where: str) -> tuple[ToolCall, ...]:
    """OpenAI's calls; the one call of its older `function_call` counts as well."""
    calls = calls_of(body.get("tool_calls"), f"{where}, 'tool_calls'")
    older = body.get("function_call")
    if older is None:
        return calls
    return (*calls, *calls_of([older], f"{where}, 'function_call'"))


def _reasoning(body: Body, where: str) -> str | None:
    found = {
        key: text_of(body[key], f"{where}, {key!r}")
        for key in _REASONING_KEYS
        if body.get(key) is not None
    }
    if len(set(found.values())) > 1:
        detail = f"{where} has {listed(found)} with different texts, want one of them"
        raise RecordRefusedError(Reason.WRONG_VALUE, detail)
    return next(iter(found.values()), None)


def _split(content: str) -> tuple[str | None, str]:
    """A thought in front of calls that are written as JSON, and the JSON."""
    found = _THOUGHT.match(content)
    return (found[1].strip("\n"), content[found.end() :]) if found else (None, content)


def _is_trained(body: Body, where: str) -> bool:
    """OpenAI's `weight` 0 or 1, or `train`; fractions of a weight are nobody's labels."""
    for key in _TRAINED_KEYS:
        value = body.get(key)
        if value is not None and (not isinstance(value, bool | int | float) or value not in (0, 1)):
            detail = f"{where}, {key!r} is {value!r}, want 0 or 1"
            raise RecordRefusedError(Reason.WRONG_VALUE, detail)
    return all(body.get(key) is None or bool(body[key]) for key in _TRAINED_KEYS)


def _optional_text(body: Body, key: str, where: str) -> str | None:
    value = body.get(key)
    return None if value is None else text_of(value, f"{where}, {key!r}")
