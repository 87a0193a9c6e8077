"""The proof that what is learned in a text is what an assistant says in its conversation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from llm_data.records import Reason, RecordRefusedError
from llm_data.templates.source import Span
from llm_data.templates.spans import unproven
from llm_data.templates.turns import CallStyle
from llm_data.templates.writer import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the probes of a template have shown.

    An answer is one of `leads`, its words and one of `ends`; a thought stands between the two texts
    of `around`, words after it. What is not proven is None, with the reason beside it.
    """

    ends: tuple[str, ...]
    leads: tuple[str, ...] = ("",)
    around: tuple[str, str] | None = None
    no_thoughts: str = "not tried"
    no_calls: str | None = "not tried"
    style: CallStyle = field(default_factory=CallStyle)


def check_text(
    name: str,
    text: str,
    spans: Sequence[Span],
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, object]],
    evidence: Evidence,
) -> None:
    """RecordRefusedError unless the spans are the answers, and all else stands outside them."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    found = [span.message for span in spans]
    if found != answers:
        raise unproven(name, f"learned text for the messages {found}, want {answers}")
    users = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
    for span in spans:
        # Many templates drop the thoughts of answers that another question follows.
        is_last = span.message > max(users, default=-1)
        said = text[span.start : span.end]
        problem = _problem(said, turns[span.message], evidence, is_last=is_last)
        if problem is not None:
            raise (
                problem
                if isinstance(problem, RecordRefusedError)
                else unproven(name, f"message {span.message}: {problem}")
            )
    _check_outside(name, text, spans, turns)
    first = text[: spans[0].start] if spans else text
    for tool in tools:
        function = tool.get("function")
        title = None
        if isinstance(function, Mapping):
            title = cast("Mapping[str, object]", function).get("name")
        if isinstance(title, str) and title not in first:
            raise _left_out(name, f"the tool {title!r}")


def _problem(
    said: str, turn: Turn, evidence: Evidence, *, is_last: bool
) -> str | RecordRefusedError | None:
    """What is wrong with the text that is learned of an answer."""
    end = next((end for end in evidence.ends if said.endswith(end)), None)
    if end is None:
        return f"its learned text ends in {said[-20:]!r}, want {' or '.join(evidence.ends)}"
    body = said[: -len(end)]
    if "tool_calls" in turn:
        return _calls_problem(body, turn, evidence)
    words, thought = turn["content"], turn.get("reasoning_content")
    if any(body == lead + words for lead in evidence.leads):
        # Only what a thought would change can still be wrong.
        return None if not (thought and is_last) else _lost_thought()
    if thought is not None and thought.strip() in body:
        around = evidence.around
        if around is None:
            return evidence.no_thoughts
        if _is_same(body, around[0] + thought + around[1] + words):
            return None
        if thought:
            return f"its thought does not stand between {around[0]!r} and {around[1]!r}"
    if all(body.strip() != (lead + words).strip() for lead in evidence.leads):
        shown = body if len(body) < 60 else f"{body[:30]}…{body[-30:]}"
        return f"its learned text is {shown!r}, which is not the answer as the record has it"
    return None if not (thought and is_last) else _lost_thought()


def _calls_problem(body: str, turn: Turn, evidence: Evidence) -> str | None:
    for words in (turn.get("reasoning_content", ""), turn["content"] or ""):
        if words.strip() not in body:
            return f"its learned text is without {words[:30]!r}"
    at = 0
    for call in turn["tool_calls"]:
        title = call["function"]["name"]
        at = body.find(title, at) + len(title)
        if at < len(title):
            return f"its learned text is without the call of {title!r}"
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        inside = next((end for end in evidence.ends if end in arguments), None)
        if inside is not None:
            return f"the arguments of {title!r} hold the end token {inside!r}"
    return None


def _check_outside(name: str, text: str, spans: Sequence[Span], turns: Sequence[Turn]) -> None:
    start = 0
    borders = iter([*spans, Span(len(text), len(text), len(turns))])
    end = next(borders)
    for number, turn in enumerate(turns):
        if number == end.message:
            start, end = end.end, next(borders)
            continue
        words = turn["content"].strip()
        if text.find(words, start, end.start) >= 0:
            continue
        quoted = json.dumps(words, ensure_ascii=False)[1:-1]
        if text.find(quoted, start, end.start) < 0:
            raise _left_out(name, f"message {number} ({turn['role']})")


def _left_out(name: str, what: str) -> RecordRefusedError:
    return RecordRefusedError(
        Reason.NOT_IN_TEMPLATE, f"template {name}: it has no place for {what} and leaves it out"
    )


def _lost_thought() -> RecordRefusedError:
    return RecordRefusedError(
        Reason.NOT_IN_TEMPLATE,
        "the template leaves out the thought of the last answer; want --thinking off, or a "
        "template with a place for thoughts",
    )


def _is_same(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but white space."""
    return one == other or "".join(one.split()) == "".join(other.split())
