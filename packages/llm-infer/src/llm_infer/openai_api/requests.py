"""Requests of OpenAI's API, field by field; `parsing` reads and checks them.

Fields: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create.
Beyond them, as vLLM has them: `top_k`, `min_p`, `repetition_penalty`, and those of beam search.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from llm_infer.engine import Message, Tool
from llm_infer.openai_api.beam_requests import BeamFields, beams_of
from llm_infer.openai_api.tool_requests import ToolCall, ToolChoice, forced_schema
from llm_infer.sampling import Beams

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

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
    reasoning: str | None = None
    """What vLLM calls `reasoning_content` by now."""
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
        if thought := self.reasoning_content or self.reasoning:
            found["reasoning_content"] = thought
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
    repetition_penalty: float | None = None
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
    separate_reasoning: bool | None = None
    """SGLang's word for whether thoughts stand apart from `content`."""

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
