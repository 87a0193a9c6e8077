"""Records with a list of messages: ShareGPT, OpenAI, TRL."""

from llm_data.errors import did_you_mean, listed
from llm_data.messages import Conversation, Message, Preference
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.calls import tools_of
from llm_data.samples.columns import ChatColumns
from llm_data.samples.pairs import pair_of
from llm_data.samples.reading import Asked, cut_answer
from llm_data.samples.turns import TurnReader
from llm_data.samples.values import Body, is_list, list_of, optional, text_of


class ChatReader:
    """Reads messages in their order. A system message overrides the system column, as in
    LLaMA-Factory; an empty one is none.
    """

    def __init__(self, columns: ChatColumns) -> None:
        self._columns = columns
        self._turns = TurnReader(columns.tags)

    def conversation(self, body: Body, /) -> Conversation:
        """All turns with the answer; nothing is done to the record's order."""
        column = self._messages_column(body)
        messages = self._read(list_of(body[column], repr(column)), "message")
        if not messages:
            raise RecordRefusedError(Reason.EMPTY, f"{column!r} has no messages")
        return self._completed(messages, body)

    def asked(self, body: Body, /) -> Asked:
        """The turns up to the last that is not an answer."""
        return cut_answer(self.conversation(body))

    def preference(self, body: Body, /) -> Preference:
        """Answers as texts, messages, lists of one message, or as two whole conversations that
        differ in their last message; those have their prompt with them.
        """
        columns = self._columns
        pair = pair_of(body, chosen=columns.chosen, rejected=columns.rejected)
        chosen = self._side(pair.chosen, columns.chosen)
        rejected = self._side(pair.rejected, columns.rejected)
        if len(chosen) > 1 or len(rejected) > 1:
            prompt = self._completed(_common(chosen, rejected), body)
        else:
            prompt = self.conversation(body)
        return Preference(prompt=prompt, chosen=chosen[-1], rejected=rejected[-1])

    def _messages_column(self, body: Body) -> str:
        names = self._columns.messages
        for name in names:
            if body.get(name) is not None:
                return name
        for name in names:
            if name in body:
                return name
        hint = next(filter(None, (did_you_mean(name, body) for name in names)), "")
        raise RecordRefusedError(
            Reason.MISSING_KEY,
            f"no key {' or '.join(map(repr, names))}; the record has {listed(body)}{hint}",
        )

    def _read(self, values: list[object], what: str) -> list[Message]:
        return [
            self._turns.read(value, f"{what} {number}") for number, value in enumerate(values, 1)
        ]

    def _completed(self, messages: list[Message], body: Body) -> Conversation:
        """The messages with the record's system text and tools."""
        columns = self._columns
        system = text_of(optional(body, columns.system), repr(columns.system))
        if messages and messages[0].role == "system":
            opening, turns = messages[:1], messages[1:]
        else:
            opening, turns = [Message(role="system", content=system)], messages
        if not opening[0].content:
            opening = []
        tools = tools_of(optional(body, columns.tools), repr(columns.tools))
        return Conversation(messages=(*opening, *turns), tools=tools)

    def _side(self, value: object, column: str) -> list[Message]:
        """One side's messages, the answer last."""
        if value is None or isinstance(value, str):
            answer = Message(role="assistant", content=text_of(value, repr(column)))
            return [answer]
        messages = self._read(value if is_list(value) else [value], f"{column!r}, message")
        if not messages:
            raise RecordRefusedError(Reason.EMPTY, f"{column!r} has no messages")
        if messages[-1].role != "assistant":
            raise RecordRefusedError(
                Reason.WRONG_TURNS,
                f"{column!r} ends with a message of {messages[-1].role}, want assistant",
            )
        return messages


def _common(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    prompt = chosen[:-1]
    if prompt == rejected[:-1]:
        return prompt
    pairs = zip(prompt, rejected[:-1], strict=False)
    same = next((number for number, (one, two) in enumerate(pairs) if one != two), None)
    shorter = min(len(prompt), len(rejected) - 1)
    raise RecordRefusedError(
        Reason.WRONG_TURNS,
        f"chosen has {len(chosen)} messages and rejected {len(rejected)}, they differ from message "
        f"{(shorter if same is None else same) + 1} on; want the same but for the last one",
    )
