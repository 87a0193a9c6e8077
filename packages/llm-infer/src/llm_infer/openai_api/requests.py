"""Requests of OpenAI's API, checked: every field means something here or is refused by name.

Fields: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create.
Beyond them, as vLLM has them: `top_k`, `min_p`, `repetition_penalty`, and those of beam search.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_infer.chat import checked_variables
from llm_infer.engine import Message, Tool
from llm_infer.openai_api.beam_requests import BeamFields, beams_of
from llm_infer.openai_api.errors import ApiError, invalid
from llm_infer.openai_api.tool_requests import (
    ToolCall,
    ToolChoice,
    check_choice,
    check_tool,
    forced_schema,
)
from llm_infer.sampling import Beams

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

_NO_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)  # fmt: skip
"""Fields that clients send for the bookkeeping of OpenAI's own service."""

_UNION_MEMBER = re.compile(r"str|constrained-str|(list|literal)\[.*\]|NamedTool")
"""How pydantic names the members of a union in the path of an error."""

Stop = Annotated[str, Field(min_length=1, max_length=512)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextPart(_Model):
    """A part of a message; pictures and sound are not for this server."""

    type: Literal["text"]
    text: str


class ChatMessage(_Model):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    refusal: None = None
    """As our answers have it, which clients send back."""

    def plain(self) -> Message:
        """As chat templates want it; `developer` is OpenAI's later word for `system`."""
        text = self.content
        if isinstance(text, list):
            text = "".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        found: dict[str, Any] = {"role": role, "content": text}
        if self.tool_calls:
            found["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.reasoning_content:
            found["reasoning_content"] = self.reasoning_content
        if self.role == "tool":
            found |= {"tool_call_id": self.tool_call_id, "name": self.name}
        return {key: value for key, value in found.items() if value is not None}


class StreamOptions(_Model):
    """What a stream carries beside the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Model):
    """A schema that the answer follows."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Model):
    """Plain text, any JSON object, or JSON after a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


@dataclass(frozen=True, slots=True)
class HeldTo:
    """A JSON schema, and the field that asks for it."""

    schema: Mapping[str, object]
    field: str


class Common(_Model, BeamFields, ABC):
    """What both kinds of request can say."""

    # Unknown fields are looked at one by one in `parse`: some are harmless.
    model_config = ConfigDict(extra="allow")

    UNSUPPORTED: ClassVar[tuple[str, ...]] = ()

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None

    @property
    def num_choices(self) -> int:
        """Answers wanted for a prompt."""
        return self.n or 1

    @property
    def beams(self) -> Beams | None:
        """The beam search that answers each prompt; None where tokens are chosen one by one."""
        return beams_of(self, num_texts=self.num_choices, best_of=None)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which an answer ends."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def schema_wanted(self) -> Mapping[str, object] | None:
        """The JSON schema of the answer; None for plain text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        return {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_

    @property
    def held_to(self) -> HeldTo | None:
        """What an answer is held to; None for plain text."""
        schema = self.schema_wanted
        return None if schema is None else HeldTo(schema, "response_format")

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to tell beside each chosen one; None tells no probabilities at all."""

    @property
    @abstractmethod
    def token_limit(self) -> int | None:
        """Tokens of an answer at most; None is as many as the context takes."""


class ChatRequest(Common):
    """`POST /v1/chat/completions`."""

    UNSUPPORTED = ("functions", "function_call", "modalities", "audio", "prediction",
                   "reasoning_effort", "verbosity", "web_search_options")  # fmt: skip

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template is told beside the messages, as vLLM's server takes it."""
        return self.chat_template_kwargs or {}

    @property
    def tools_wanted(self) -> list[Tool] | None:
        """The tools that the chat template is told of; None for none."""
        if not self.tools or self.tool_choice == "none":
            return None
        # As they came: templates write them out, key by key.
        return list(self.tools)

    @property
    def call_wanted(self) -> Mapping[str, object] | None:
        """The JSON schema of the one call that the answer must be; None where it need not."""
        return forced_schema(self.tool_choice, self.tools or ())

    @property
    def held_to(self) -> HeldTo | None:
        """What an answer is held to; None for plain text."""
        call = self.call_wanted
        return super().held_to if call is None else HeldTo(call, "tool_choice")

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to tell beside each chosen one; None tells no probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """Tokens of an answer at most; None is as many as the context takes."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Common):
    """`POST /v1/completions`."""

    UNSUPPORTED = ("suffix",)

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    max_tokens: int | None = Field(None, ge=0)

    @property
    def beams(self) -> Beams | None:
        """The beam search that answers each prompt; None where tokens are chosen one by one."""
        return beams_of(self, num_texts=self.num_choices, best_of=self.best_of)

    @property
    def reads_prompt(self) -> bool:
        """Whether the probabilities of the prompt's tokens are told before the answer's."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to tell beside each chosen one; None tells no probabilities at all."""
        return self.logprobs

    @property
    def token_limit(self) -> int | None:
        """Tokens of an answer at most; OpenAI's default is 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt, text or tokens."""
        found = self.prompt
        if isinstance(found, str):
            return [found]
        if found and all(isinstance(one, int) for one in found):
            return [[one for one in found if isinstance(one, int)]]
        return [one for one in found if not isinstance(one, int)]


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
