"""Conversations and preferences: what every chat record becomes before a template renders it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function an assistant asks for. `arguments` is the decoded JSON object."""

    name: str
    arguments: Mapping[str, object]
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `thought` is an assistant's reasoning without its marks, None where none is given.

    `is_trained` False keeps an assistant's turn out of the loss. `tool_call_id` and `name` belong
    to a tool's answer.
    """

    role: Role
    content: str = ""
    thought: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    is_trained: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns in order; `tools` are function specifications as OpenAI's API has them
    (`{"type": "function", "function": {"name": …, "description": …, "parameters": …}}`).
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two answers to one prompt, the better one first."""

    prompt: Conversation
    chosen: Message
    rejected: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that waits for an answer, and further columns that go along as text."""

    conversation: Conversation
    extra: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRewards:
    """A solution whose steps end in a placeholder, and one reward token a step."""

    text: str
    rewards: tuple[str, ...]


Sample = Conversation | Preference | Prompt | StepRewards
