"""A conversation: what was said, what the model is shown of it, and the commands in between."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import cast

from llm_infer.engine import Message
from llm_infer.errors import InferError

COMMANDS = ("/clear", "/system", "/save", "/load", "/quit", "/help")
HELP = (
    "/clear forget the conversation · /system TEXT set the system prompt · "
    "/save FILE, /load FILE keep it as JSON · /quit"
)


# What every chat template is told anyway, and what transformers takes beside a template's names.
_TOLD = frozenset({"messages", "conversation", "tools", "documents", "add_generation_prompt"})
_TAKEN = frozenset({"chat_template", "continue_final_message", "tokenize", "padding", "truncation",
                    "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
                    "return_assistant_tokens_mask", "sanitize_control_tokens"})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The system prompt and the last `max_turns` pairs of question and answer."""

    system: str | None
    max_turns: int
    turns: tuple[tuple[str, str], ...] = ()

    def messages(self, question: str) -> list[Message]:
        """What the model sees when `question` is asked now."""
        start = [{"role": "system", "content": self.system}] if self.system else []
        said = [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*start, *said, {"role": "user", "content": question}]

    def answered(self, question: str, answer: str) -> "Conversation":
        """With one more pair; the oldest goes when there are too many."""
        turns = (*self.turns, (question, answer))
        return replace(self, turns=turns[max(0, len(turns) - self.max_turns) :])

    def dumped(self) -> str:
        """As JSON that `loaded` reads: an object with `messages`, as OpenAI's API has them."""
        messages = self.messages("")[:-1]
        return json.dumps({"messages": messages}, ensure_ascii=False, indent=1) + "\n"

    def loaded(self, text: str, *, where: str) -> "Conversation":
        """The conversation in `text`, with this one's limit; raises InferError for any other."""
        messages = _messages(text, where)
        system = messages.pop(0)[1] if messages and messages[0][0] == "system" else None
        said = [content for _, content in messages]
        wanted = ("user", "assistant")
        for number, (role, _) in enumerate(messages):
            if role != wanted[number % 2]:
                found = f"message {number + 1 + (system is not None)} is of {role!r}"
                raise InferError(f"{where}: {found}, want {wanted[number % 2]!r}")
        if len(said) % 2:
            raise InferError(f"{where}: the last question has no answer")
        turns = tuple(zip(said[::2], said[1::2], strict=True))
        kept = turns[max(0, len(turns) - self.max_turns) :]
        return replace(self, system=system, turns=kept)

    def cleared(self) -> "Conversation":
        """Without its history."""
        return replace(self, turns=())


def checked_variables(variables: Mapping[str, object]) -> dict[str, object]:
    """More names for chat templates. ValueError for one that is not theirs to be told."""
    for name in variables:
        if name in _TOLD:
            raise ValueError(f"{name!r} comes from the conversation; leave it out")
        if name in _TAKEN:
            raise ValueError(f"{name!r} is no name that templates can be told")
    return dict(variables)


def split_command(line: str) -> tuple[str, str] | None:
    """`/name argument` as a pair, None for anything that is to be said to the model."""
    if not line.startswith("/"):
        return None
    name, _, argument = line.partition(" ")
    return name, argument.strip()


def unknown_command(name: str, commands: Sequence[str] = COMMANDS) -> str:
    """What to tell about a command that does not exist."""
    near = get_close_matches(name, commands, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}"
    return f"no command {name}: {hint}"


def _messages(text: str, where: str) -> list[tuple[str, str]]:
    """Role and content of each message of a saved conversation."""
    try:
        document: object = json.loads(text)
    except ValueError as error:
        raise InferError(f"{where}: not JSON ({error})") from None
    found = cast("dict[str, object]", document).get("messages") if _is_object(document) else None
    if not isinstance(found, list):
        raise InferError(f"{where}: want a JSON object with a list under 'messages'")
    pairs: list[tuple[str, str]] = []
    for number, message in enumerate(cast("list[object]", found), start=1):
        fields = cast("dict[str, object]", message) if _is_object(message) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise InferError(f"{where}: message {number}: want texts under 'role' and 'content'")
        pairs.append((role, content))
    return pairs


def _is_object(value: object) -> bool:
    return isinstance(value, dict)
