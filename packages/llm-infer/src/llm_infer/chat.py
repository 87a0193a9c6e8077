"""A conversation: what was said, what the model is shown of it, and the commands in between."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from llm_infer.engine import Message

COMMANDS = ("/clear", "/system", "/quit", "/help")
HELP = "/clear forget the conversation · /system TEXT set the system prompt · /quit"


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

    def cleared(self) -> "Conversation":
        """Without its history."""
        return replace(self, turns=())


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
