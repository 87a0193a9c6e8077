"""What a chat request says of tools: earlier calls, the tools there are, and which must be called.

Fields: https://platform.openai.com/docs/api-reference/chat/create.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from llm_infer.engine import Tool
from llm_infer.openai_api.errors import invalid
from llm_infer.tools.splitter import tool_names


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class CalledFunction(_Model):
    """What an assistant called."""

    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCall(_Model):
    """A call in an earlier answer of the assistant."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None
    """Its place in a stream, which clients that join chunks may leave in."""

    def plain(self) -> Mapping[str, object]:
        """As chat templates want it: the arguments are an object there, and no text."""
        arguments = json.loads(self.function.arguments)
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class NamedFunction(_Model):
    """A function by its name alone."""

    name: str


class NamedTool(_Model):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def check_tool(tool: Mapping[str, Any], where: str) -> None:
    """Raise `ApiError` for what is no function with a name."""
    if tool.get("type") != "function":
        raise invalid(f"{where}.type: found {tool.get('type')!r}, want 'function'", param=where)
    found = tool.get("function")
    function = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    if not isinstance(function.get("name"), str):
        raise invalid(f"{where}.function: want an object with a name", param=where)
    parameters = function.get("parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise invalid(f"{where}.function.parameters: want a JSON schema, an object", param=where)
    if not isinstance(cast("dict[str, object]", parameters).get("$defs", {}), dict):
        raise invalid(f"{where}.function.parameters.$defs: want an object", param=where)


def check_choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> None:
    """Raise `ApiError` for a choice among tools that are not there."""
    if choice is None or choice in ("none", "auto"):
        return
    if not tools:
        raise invalid("tool_choice: only with tools", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in tool_names(tools):
        names = ", ".join(sorted(tool_names(tools)))
        found = f"found {choice.function.name!r}, tools has {names}"
        raise invalid(f"tool_choice.function.name: {found}", param="tool_choice")


def forced_schema(choice: ToolChoice | None, tools: Sequence[Tool]) -> Mapping[str, object] | None:
    """The JSON schema of an answer that is one call, where `choice` wants that.

    Definitions that `parameters` bring (`$defs`) stand where references look for them, at the root.
    """
    if choice is None or choice in ("none", "auto"):
        return None
    wanted = {choice.function.name} if isinstance(choice, NamedTool) else tool_names(tools)
    functions = [one["function"] for one in tools if one["function"]["name"] in wanted]
    definitions: dict[str, object] = {}
    for function in functions:
        for name, schema in _parameters(function).get("$defs", {}).items():
            if definitions.setdefault(name, schema) != schema:
                message = f"tools: two functions define $defs.{name} differently; rename one"
                raise invalid(message, param="tools")
    return {"anyOf": [_one_call(function) for function in functions], "$defs": definitions}


def _one_call(function: Mapping[str, Any]) -> dict[str, object]:
    parameters = {name: one for name, one in _parameters(function).items() if name != "$defs"}
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": {"type": "object", **parameters},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    return function.get("parameters") or {}
