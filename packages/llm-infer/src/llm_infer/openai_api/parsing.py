"""A request's body, read and checked: every field means something or is refused by name."""

import json
import re
from difflib import get_close_matches
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llm_infer.chat import checked_variables
from llm_infer.openai_api.errors import ApiError, invalid
from llm_infer.openai_api.requests import ChatMessage, ChatRequest, Common, CompletionRequest
from llm_infer.openai_api.tool_requests import check_choice, check_tool

_NO_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)  # fmt: skip
"""Fields that clients send for the bookkeeping of OpenAI's own service."""

_UNION_MEMBER = re.compile(r"str|constrained-str|(list|literal)\[.*\]|NamedTool")
"""How pydantic names the members of a union in the path of an error."""

Request = TypeVar("Request", bound=Common)


def parse(model: type[Request], body: bytes) -> Request:
    """The request in a body; raises `ApiError` that names the field, what was found and wanted."""
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False), model) from None
    for name, found in (request.model_extra or {}).items():
        is_unset = found is None or found == [] or found == {} or found in ("none", "auto")
        if name not in _NO_EFFECT and not (name in model.UNSUPPORTED and is_unset):
            raise _extra(name, model)
    _check(request)
    return request


def _explained(details: list[ErrorDetails], model: type[Common]) -> ApiError:
    # A union reports each of its members; the deepest complaint is the one that was meant, and one
    # about a value rather than its type.
    detail = max(details, key=lambda one: (len(_path(one)), not one["type"].endswith("_type")))
    param = ".".join(_path(detail))
    if detail["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {detail['msg'].removeprefix('Invalid JSON: ')}")
    if detail["type"] == "extra_forbidden":
        return _extra(param, model)
    if detail["type"] == "missing":
        return invalid(f"{param}: missing", param=param, code="missing_required_parameter")
    found = repr(detail["input"])
    shown = found if len(found) <= 60 else f"{found[:57]}..."
    wanted = re.sub(r"^(Input|List|String) should (be |have )?(a valid )?", "", detail["msg"])
    where = param or "the body"
    return invalid(f"{where}: found {shown}, want {wanted}", param=param, code="invalid_value")


def _path(detail: ErrorDetails) -> list[str]:
    return [str(part) for part in detail["loc"] if not _UNION_MEMBER.fullmatch(str(part))]


def _extra(param: str, model: type[Common]) -> ApiError:
    if param in model.UNSUPPORTED:
        message = f"{param}: not supported by this server"
        return invalid(message, param=param, code="unsupported_parameter")
    near = get_close_matches(param.rpartition(".")[2], model.model_fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return invalid(f"{param}: unknown field{hint}", param=param, code="unknown_parameter")


def _check(request: Common) -> None:
    """Rules between fields."""
    wanted = request.response_format
    if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
        raise invalid("response_format.json_schema: missing", param="response_format")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options: only with stream: true", param="stream_options")
    if request.beams is not None and request.held_to is not None:
        raise invalid(f"{request.held_to.field}: not with beam search", param=request.held_to.field)
    if isinstance(request, ChatRequest):
        for index, message in enumerate(request.messages):
            _check_message(message, f"messages.{index}")
        _check_tools(request)
        if request.top_logprobs is not None and not request.logprobs:
            raise invalid("top_logprobs: only with logprobs: true", param="top_logprobs")
        try:
            checked_variables(request.template_variables)
        except ValueError as error:
            raise invalid(f"chat_template_kwargs: {error}", param="chat_template_kwargs") from None
        if request.max_tokens is not None and request.max_completion_tokens is not None:
            raise invalid("max_tokens: the older name of max_completion_tokens; give one of them",
                          param="max_tokens")  # fmt: skip
    if isinstance(request, CompletionRequest):
        _check_completion(request)


def _check_message(message: ChatMessage, where: str) -> None:
    """What a message of its role needs."""
    calls = message.tool_calls or []
    if message.content is None and not (message.role == "assistant" and calls):
        found = "found None, want a text" if "content" in message.model_fields_set else "missing"
        raise invalid(f"{where}.content: {found}", param=f"{where}.content",
                      code="missing_required_parameter")  # fmt: skip
    if calls and message.role != "assistant":
        raise invalid(f"{where}.tool_calls: only an assistant calls tools", param=where)
    if (message.role == "tool") != (message.tool_call_id is not None):
        raise invalid(f"{where}.tool_call_id: what messages of role tool have, and no others",
                      param=where)  # fmt: skip
    for number, call in enumerate(calls):
        if not _is_object(text := call.function.arguments):
            name = f"{where}.tool_calls.{number}.function.arguments"
            raise invalid(f"{name}: found {text[:40]!r}, want a JSON object", param=where)


def _check_tools(request: ChatRequest) -> None:
    tools = request.tools or []
    for index, tool in enumerate(tools):
        check_tool(tool, f"tools.{index}")
    check_choice(request.tool_choice, tools)
    if request.call_wanted is not None and request.schema_wanted is not None:
        raise invalid("response_format: an answer is either that or the call that tool_choice "
                      "wants", param="response_format")  # fmt: skip


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    # Brackets within brackets, thousands deep.
    except (ValueError, RecursionError):
        return False


def _check_completion(request: CompletionRequest) -> None:
    if request.beams is None and request.best_of not in (None, request.num_choices):
        found = f"found {request.best_of} with n {request.num_choices}"
        raise invalid(f"best_of: {found}; only best_of = n is supported", param="best_of")
    if request.max_tokens == 0 and not request.echo:
        raise invalid("max_tokens: found 0, want at least 1 without echo", param="max_tokens")
    if request.beams is not None and (request.reads_prompt or request.max_tokens == 0):
        what = "echo with logprobs" if request.reads_prompt else "max_tokens 0"
        raise invalid(f"num_beams: no beam search with {what}", param="num_beams")
    if request.reads_prompt and request.schema_wanted is not None:
        raise invalid("response_format: not with echo and logprobs", param="response_format")
    if not request.prompts():
        raise invalid("prompt: found an empty list, want a text or tokens", param="prompt")
