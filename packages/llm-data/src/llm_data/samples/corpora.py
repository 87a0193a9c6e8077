"""Conversations of corpora with columns of their own, as MindSpeed-LLM's handlers read them."""

from collections.abc import Callable
from types import MappingProxyType

from llm_data.messages import Conversation, Message, Preference
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.reading import Asked, cut_answer
from llm_data.samples.values import Body, object_of, required, text_of

_HUMAN = "Human:"
_ASSISTANT = "Assistant:"
_MOSS_MARKS = MappingProxyType({"Human": ("<|Human|>:", "<eoh>"), "MOSS": ("<|MOSS|>:", "<eom>")})


class CorpusReader:
    """Conversations by a function of the record."""

    def __init__(self, read: Callable[[Body], Conversation]) -> None:
        self._read = read

    def conversation(self, body: Body, /) -> Conversation:
        """All turns with the answer."""
        return self._read(body)

    def asked(self, body: Body, /) -> Asked:
        """The turns up to the last that is not an answer."""
        return cut_answer(self._read(body))

    def preference(self, _body: Body, /) -> Preference:
        """Never: these corpora have one answer a record."""
        raise RecordRefusedError(Reason.WRONG_VALUE, "the record has no pair of answers")


def belle(body: Body) -> Conversation:
    """Belle's multi-turn records: `instruction` holds the turns in one text, marked `Human:` and
    `Assistant:`, the last without its answer, which is in `output`.
    """
    text = text_of(required(body, "instruction"), "'instruction'")
    answer = text_of(required(body, "output"), "'output'")
    before, *turns = text.split(_HUMAN)
    if before.strip() or not turns:
        raise RecordRefusedError(
            Reason.WRONG_VALUE, f"'instruction' does not begin with {_HUMAN!r}"
        )
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        question, *answers = turn.split(_ASSISTANT)
        is_last = number == len(turns)
        if len(answers) > 1 or (is_last and "".join(answers).strip()):
            wanted = "none before 'output'" if is_last else "one"
            raise RecordRefusedError(
                Reason.WRONG_TURNS,
                f"'instruction', turn {number} has {len(answers)} answers, want {wanted}",
            )
        messages.append(Message(role="user", content=question.strip()))
        if not is_last:
            messages.append(Message(role="assistant", content="".join(answers).strip()))
    messages.append(Message(role="assistant", content=answer.strip()))
    return Conversation(messages=tuple(messages))


def moss(body: Body) -> Conversation:
    """MOSS's records: `chat` holds turns by name, each with `Human` and `MOSS`. Only what both say
    is read; turns that are null are those that a shorter conversation lacks.
    """
    chat = object_of(required(body, "chat"), "'chat'")
    messages: list[Message] = []
    for name, value in chat.items():
        if value is None or value == {}:
            continue
        turn = object_of(value, f"'chat', {name!r}")
        messages.append(Message(role="user", content=_said(turn, "Human", name)))
        messages.append(Message(role="assistant", content=_said(turn, "MOSS", name)))
    return Conversation(messages=tuple(messages))


def leetcode(body: Body) -> Conversation:
    """Leetcode's solutions: the problem up to the code in `code_with_problem`, then `code_only`
    with `explanation_only` on a line of its own.
    """
    problem, code, explanation = (
        text_of(required(body, key), repr(key))
        for key in ("code_with_problem", "code_only", "explanation_only")
    )
    question = problem.split("```", maxsplit=1)[0].strip()
    answer = f"{code}\n{explanation}" if code.strip() or explanation.strip() else ""
    return Conversation(
        messages=(
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        )
    )


def _said(turn: Body, who: str, name: str) -> str:
    where = f"'chat', {name!r}"
    text = text_of(required(turn, who, what=where), f"{where}, {who!r}")
    for mark in _MOSS_MARKS[who]:
        text = text.replace(mark, "")
    return text.strip()
