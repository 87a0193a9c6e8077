"""Conversations as the dictionaries that chat templates read, with thoughts where they belong."""

import json
import re
from dataclasses import dataclass
from typing import Any

from llm_data.messages import Conversation, Message, ToolCall
from llm_data.templates.source import THINK, Thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStyle:
    """How a template wants calls of tools: arguments as an object or as JSON text, and no words
    as an empty text or as null. transformers' way comes first.
    """

    has_text_arguments: bool = False
    has_null_words: bool = False


def turns_of(
    conversation: Conversation,
    *,
    thinking: Thinking,
    marks: tuple[str, str] | None,
    style: CallStyle | None = None,
) -> list[dict[str, Any]]:
    """One dictionary a message, with the keys that transformers documents for chat templates.

    `reasoning_content` is there exactly where a thought is to be learned; it may be empty.
    """
    turns: list[dict[str, Any]] = []
    for message in conversation.messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "assistant":
            turn |= _answer(message, thinking=thinking, marks=marks)
        if message.tool_calls:
            style = style or CallStyle()
            turn["tool_calls"] = [
                _call(call, as_text=style.has_text_arguments) for call in message.tool_calls
            ]
            if style.has_null_words and not turn["content"]:
                turn["content"] = None
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            turn["name"] = message.name
        turns.append(turn)
    return turns


def split_thought(content: str, marks: tuple[str, str]) -> tuple[str | None, str]:
    """A thought that opens an answer, and the rest; None and the answer if it opens with none."""
    for opening, closing in (marks, THINK):
        pattern = rf"\s*{re.escape(opening.strip())}(.*?){re.escape(closing.strip())}"
        found = re.match(pattern, content, re.DOTALL)
        if found is not None:
            return found[1].strip("\n"), content[found.end() :].lstrip("\n")
    return None, content


def _answer(
    message: Message, *, thinking: Thinking, marks: tuple[str, str] | None
) -> dict[str, Any]:
    thought, content = message.thought, message.content
    # A template without a place for thoughts is given an answer as it stands, unless its thought
    # is to go.
    if thought is None and (marks is not None or thinking is Thinking.OFF):
        thought, content = split_thought(content, marks or THINK)
    if thinking is Thinking.OFF:
        thought = None
    elif thinking is Thinking.ON and marks is not None:
        thought = thought or ""
    if thought is None:
        return {"content": content}
    if marks is None:
        return {"content": f"{THINK[0]}{thought}{THINK[1]}{content}"}
    # gpt-oss's own template reads "thinking"; transformers gives both names too.
    return {"content": content, "reasoning_content": thought, "thinking": thought}


def _call(call: ToolCall, *, as_text: bool) -> dict[str, Any]:
    arguments: object = dict(call.arguments)
    if as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    found: dict[str, Any] = {
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }
    if call.id is not None:
        found["id"] = call.id
    return found
