"""Calls of tools and specifications of tools, as records write them."""

from collections.abc import Mapping

from llm_data.messages import ToolCall
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.values import (
    Body,
    decoded,
    is_list,
    is_object,
    list_of,
    object_of,
    text_of,
    wrong_type,
)


def calls_of(value: object, where: str) -> tuple[ToolCall, ...]:
    """OpenAI's `tool_calls`: objects with `function` and an id, or what `function` holds alone."""
    return tuple(
        _call(object_of(call, f"{where}, call {number}"), f"{where}, call {number}")
        for number, call in enumerate(list_of(value, where), 1)
    )


def written_calls(text: str, where: str) -> tuple[ToolCall, ...]:
    """ShareGPT's `function_call`: JSON of one object with name and arguments, or of a list."""
    value = decoded(text, where)
    if value is None:
        return ()
    if not (is_object(value) or is_list(value)):
        raise wrong_type(where, value, "an object with name and arguments, or a list of them")
    return calls_of([value] if is_object(value) else value, where)


def tools_of(value: object, where: str) -> tuple[Mapping[str, object], ...]:
    """Specifications as a list or as JSON; one without the frame `{"type", "function"}` gets it."""
    value = decoded(value, where) if isinstance(value, str) else value
    every = [value] if is_object(value) else list_of(value, where)
    return tuple(_tool(tool, f"{where}, tool {number}") for number, tool in enumerate(every, 1))


def _call(call: Body, where: str) -> ToolCall:
    inner = call if call.get("function") is None else call["function"]
    function = object_of(inner, f"{where}, 'function'")
    call_id = call.get("id")
    return ToolCall(
        name=_name(function, where),
        arguments=_arguments(function, where),
        id=None if call_id is None else text_of(call_id, f"{where}, 'id'"),
    )


def _arguments(function: Body, where: str) -> Mapping[str, object]:
    """Either an object or its JSON; a call without any has none."""
    value = function.get("arguments")
    if value is None and function.get("parameters") is not None:
        value = function["parameters"]
    where = f"{where}, 'arguments'"
    if isinstance(value, str):
        value = decoded(value, where)
    return {} if value is None else object_of(value, where)


def _tool(value: object, where: str) -> Mapping[str, object]:
    value = decoded(value, where) if isinstance(value, str) else value
    tool = object_of(value, where)
    if tool.get("function") is None:
        _name(tool, where)
        return {"type": "function", "function": tool}
    _name(object_of(tool["function"], f"{where}, 'function'"), where)
    return tool


def _name(function: Body, where: str) -> str:
    name = text_of(function.get("name"), f"{where}, 'name'")
    if not name:
        detail = f"{where} has no name; it has {', '.join(map(str, function)) or 'nothing'}"
        raise RecordRefusedError(Reason.WRONG_VALUE, detail)
    return name
