"""The order of turns in a conversation, and that each turn says something."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llm_data.messages import Message, Role
from llm_data.records import Reason, RecordRefusedError

# Who may speak after whom; None stands for the beginning and for the system text before it.
# LLaMA-Factory's rule, and an assistant's several calls may have an answer each.
_FOLLOWERS: Mapping[Role | None, tuple[Role, ...]] = MappingProxyType(
    {
        None: ("user",),
        "user": ("assistant",),
        "assistant": ("user", "tool"),
        "tool": ("assistant", "tool"),
    }
)


def check_turns(messages: Sequence[Message], *, last: tuple[Role, ...]) -> None:
    """Refuse turns that are out of order, end with the wrong one or are empty.

    A tool may answer with nothing; a user may not, nor an assistant who calls no tool.
    """
    before: Role | None = None
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number == 1:
            continue
        wanted = _FOLLOWERS[before]
        if message.role not in wanted:
            after = f"after {before}" if before else "first"
            raise _out_of_order(messages, f"message {number} is {message.role}", wanted, after)
        before = message.role
    if before not in last:
        ending = f"the last message is {before}" if before else "there are no turns"
        raise _out_of_order(messages, ending, last, "last")
    for number, message in enumerate(messages, 1):
        if is_empty(message) and message.role != "tool":
            detail = f"message {number} ({message.role}) has no text"
            raise RecordRefusedError(Reason.EMPTY, detail)


def is_empty(message: Message) -> bool:
    """Whether a turn says nothing: no text but white space, no thought and no calls."""
    return not (message.content.strip() or message.tool_calls or (message.thought or "").strip())


def _out_of_order(
    messages: Sequence[Message], found: str, wanted: Sequence[Role], place: str
) -> RecordRefusedError:
    roles = " ".join(message.role for message in messages[:12])
    more = " …" if len(messages) > 12 else ""
    return RecordRefusedError(
        Reason.WRONG_TURNS,
        f"{found}, want {' or '.join(wanted)} {place}; the {len(messages)} messages are "
        f"{roles or 'none'}{more}",
    )
