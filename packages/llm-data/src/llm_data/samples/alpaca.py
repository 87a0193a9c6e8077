"""Records with a column for each part of a conversation: instruction, input, output, history."""

from collections.abc import Iterable

from llm_data.messages import Conversation, Message, Preference
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.calls import tools_of
from llm_data.samples.columns import AlpacaColumns
from llm_data.samples.pairs import pair_of
from llm_data.samples.reading import Asked
from llm_data.samples.values import (
    Body,
    is_list,
    is_object,
    list_of,
    optional,
    required,
    text_of,
    wrong_type,
)


class AlpacaReader:
    """Reads the prompt, with a line break before the input, and one answer, or a list of one."""

    def __init__(self, columns: AlpacaColumns) -> None:
        self._columns = columns

    def conversation(self, body: Body, /) -> Conversation:
        """All turns with the answer, which must be there."""
        prompt = self._prompt(body)
        column = self._columns.response
        answer = _answer(_only(required(body, column), column), column)
        return Conversation(messages=(*prompt.messages, answer), tools=prompt.tools)

    def asked(self, body: Body, /) -> Asked:
        """The turns before the answer."""
        column = self._columns.response
        value = optional(body, column)
        answer = None if value is None else _answer(_only(value, column), column)
        return Asked(self._prompt(body), answer)

    def preference(self, body: Body, /) -> Preference:
        """The prompt and both its answers."""
        columns = self._columns
        pair = pair_of(body, chosen=columns.chosen, rejected=columns.rejected)
        return Preference(
            prompt=self._prompt(body),
            chosen=_answer(pair.chosen, columns.chosen),
            rejected=_answer(pair.rejected, columns.rejected),
        )

    def _prompt(self, body: Body) -> Conversation:
        columns = self._columns
        system = text_of(optional(body, columns.system), f"{columns.system!r}")
        parts = [
            text_of(required(body, columns.prompt) if columns.prompt else None, columns.prompt),
            text_of(optional(body, columns.query), f"{columns.query!r}"),
        ]
        user = Message(role="user", content="\n".join(filter(None, parts)))
        history = _history(optional(body, columns.history), f"{columns.history!r}")
        opening = (Message(role="system", content=system),) if system else ()
        tools = tools_of(optional(body, columns.tools), f"{columns.tools!r}")
        return Conversation(messages=(*opening, *history, user), tools=tools)


def _history(value: object, where: str) -> Iterable[Message]:
    for number, pair in enumerate(list_of(value, where), 1):
        here = f"{where}, pair {number}"
        texts = list_of(pair, here)
        if len(texts) != 2:
            raise RecordRefusedError(
                Reason.WRONG_TURNS, f"{here} has {len(texts)} texts, want a question and an answer"
            )
        yield Message(role="user", content=text_of(texts[0], here))
        yield Message(role="assistant", content=text_of(texts[1], here))


def _only(value: object, column: str) -> object:
    if not is_list(value):
        return value
    if len(value) != 1:
        raise RecordRefusedError(
            Reason.WRONG_VALUE, f"{column!r} is a list of {len(value)} answers, want one"
        )
    return value[0]


def _answer(value: object, column: str) -> Message:
    if is_object(value) or is_list(value):
        raise wrong_type(repr(column), value, "a string; --format openai or sharegpt has messages")
    return Message(role="assistant", content=text_of(value, repr(column)))
