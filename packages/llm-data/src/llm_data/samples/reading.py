"""What every format offers to the tasks."""

from typing import NamedTuple, Protocol

from llm_data.messages import Conversation, Message, Preference
from llm_data.samples.values import Body


class Asked(NamedTuple):
    """A conversation that waits for an answer, and the answer if the record has one."""

    prompt: Conversation
    answer: Message | None


class FormatReader(Protocol):
    """Conversations and preferences from records; nothing is checked of the order of turns."""

    def conversation(self, body: Body, /) -> Conversation:
        """All turns with the answer, which must be there."""
        ...

    def asked(self, body: Body, /) -> Asked:
        """The turns up to the last that is not an answer."""
        ...

    def preference(self, body: Body, /) -> Preference:
        """The prompt and both its answers."""
        ...


def cut_answer(conversation: Conversation) -> Asked:
    """The conversation without an assistant's turn at its end, and that turn."""
    messages = conversation.messages
    if not messages or messages[-1].role != "assistant":
        return Asked(conversation, None)
    prompt = Conversation(messages=messages[:-1], tools=conversation.tools)
    return Asked(prompt, messages[-1])
