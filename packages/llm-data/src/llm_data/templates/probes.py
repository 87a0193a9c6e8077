"""Conversations of unlikely words that show, before a run, what a template does with each part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, ToolCall
from llm_data.records import Reason, RecordRefusedError
from llm_data.templates.proof import Evidence, check_text
from llm_data.templates.source import (
    EOS,
    Rendered,
    Span,
    SpecialTokens,
    TemplateSource,
    Thinking,
)
from llm_data.templates.spans import derived_spans, marked_spans, prompt_of, unproven
from llm_data.templates.turns import CallStyle, turns_of
from llm_data.templates.writer import Turn, Writer, Written


class Draft:
    """A template with what is known of it so far: texts and spans, not yet checked."""

    def __init__(self, writer: Writer, source: TemplateSource, evidence: Evidence) -> None:
        self.writer = writer
        self.source = source
        self.evidence = evidence

    def turns(self, conversation: Conversation, thinking: Thinking) -> list[Turn]:
        """The conversation as the template reads it."""
        return [
            *turns_of(
                conversation,
                thinking=thinking,
                marks=self.source.marks,
                style=self.evidence.style,
            )
        ]

    def checked(
        self,
        conversation: Conversation,
        thinking: Thinking,
        *,
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """The text with spans that hold; RecordRefusedError otherwise."""
        turns = self.turns(conversation, thinking)
        tools = conversation.tools
        enable_thinking = {Thinking.ON: True, Thinking.OFF: False}.get(thinking)
        written = self.writer.write(
            turns,
            tools,
            enable_thinking=enable_thinking,
            add_generation_prompt=add_generation_prompt,
        )
        spans = self.spans(written, turns, tools, enable_thinking=enable_thinking)
        check_text(self.source.name, written.text, spans, turns, tools, self.evidence)
        return Rendered(written.text, spans)

    def spans(
        self,
        written: Written,
        turns: Sequence[Turn],
        tools: Sequence[Mapping[str, object]],
        *,
        enable_thinking: bool | None = None,
    ) -> tuple[Span, ...]:
        """Where the answers stand, as the marks say or as their prompts show."""
        if self.writer.has_marks:
            return marked_spans(self.source.name, written, turns)
        return derived_spans(
            self.writer,
            written,
            turns,
            tools,
            ends=self.evidence.ends,
            enable_thinking=enable_thinking,
        )


def prove(writer: Writer, source: TemplateSource, special: SpecialTokens) -> Evidence:
    """What holds for every conversation of a kind; UsageError if plain ones cannot be proven."""
    try:
        evidence = Evidence(ends=_ends(writer, source, special))
        evidence = replace(evidence, leads=_leads(Draft(writer, source, evidence)))
        draft = Draft(writer, source, evidence)
        draft.checked(ONE_TURN, Thinking.KEEP)
        _try(draft, TWO_TURNS)
    except RecordRefusedError as error:
        raise UsageError(f"no proven mask: {error.detail}") from None
    return _with_calls(Draft(writer, source, _with_thoughts(draft)))


def _try(draft: Draft, conversation: Conversation) -> None:
    """A proof that may only fail because the template itself refuses the conversation."""
    try:
        draft.checked(conversation, Thinking.KEEP)
    except RecordRefusedError as error:
        if not _is_not_taken(error):
            raise


def _is_not_taken(error: RecordRefusedError) -> bool:
    return error.reason is Reason.NOT_IN_TEMPLATE


def _ends(writer: Writer, source: TemplateSource, special: SpecialTokens) -> tuple[str, ...]:
    """The end tokens, longest first: those declared, or what follows an answer in the text."""
    if source.ends:
        if EOS in source.ends and special.eos is None:
            raise unproven(source.name, "answers end in eos_token, which the tokenizer lacks")
        ends = [(special.eos or "") if end == EOS else end for end in source.ends]
        return tuple(sorted(ends, key=len, reverse=True))
    turns = turns_of(TWO_TURNS, thinking=Thinking.KEEP, marks=source.marks)
    last = _after(source.name, writer.write(turns[:2], ()).text, _FIRST_ANSWER)
    end = last.rstrip()
    if special.eos and special.eos in end:
        end = end[: end.index(special.eos) + len(special.eos)]
    if not end.strip():
        raise unproven(
            source.name,
            "it writes no end token after the last answer, and a model would never learn to stop; "
            "`llm-data templates` lists templates that do",
        )
    try:
        two = writer.write(turns, ()).text
    except RecordRefusedError:
        return (end,)
    earlier = _after(source.name, two, _FIRST_ANSWER)
    if earlier.startswith(end):
        return (end,)
    common = "".join(
        one
        for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, earlier))  # noqa: B905
    )
    shared = common[: len(common) - len(common.split()[-1])].rstrip() if common.split() else ""
    if common and common[-1].isspace():
        shared = common.rstrip()
    if not shared.strip():
        raise unproven(
            source.name,
            f"it ends the last answer with {last[:30]!r} and an earlier one with "
            f"{earlier[:30]!r}: no common end token",
        )
    return (shared,)


def _after(name: str, text: str, words: str) -> str:
    if text.count(words) != 1:
        raise unproven(name, f"it writes an answer {text.count(words)} times, want once")
    return text.partition(words)[2]


def _leads(draft: Draft) -> tuple[str, ...]:
    """What a plain answer's learned text has before its words: mostly nothing, or a space."""
    leads: dict[str, None] = {}
    for conversation in (ONE_TURN, TWO_TURNS):
        turns = draft.turns(conversation, Thinking.KEEP)
        try:
            written = draft.writer.write(turns, ())
        except RecordRefusedError:
            if conversation is ONE_TURN:
                raise
            continue
        for span in draft.spans(written, turns, ()):
            leads[_lead(draft, written.text, turns, span)] = None
    return tuple(leads)


def _lead(draft: Draft, text: str, turns: Sequence[Turn], span: Span) -> str:
    name = draft.source.name
    lead, found, _ = text[span.start : span.end].partition(turns[span.message]["content"])
    if not found:
        raise unproven(name, "the marked text does not hold the answer")
    if any(turn["content"] in lead for turn in turns):
        raise unproven(name, "the marked text of an answer holds another message")
    prompt = prompt_of(draft.writer, text, turns, (), span.message)
    if prompt is not None and len(prompt) > span.start:
        raise unproven(
            name,
            f"the marked text begins with {text[span.start : len(prompt)]!r}, which is the "
            "prompt and not the answer; want {% generation %} behind it",
        )
    if lead.strip() and (prompt is None or len(prompt) < span.start):
        raise unproven(
            name,
            f"the marked text begins with {lead!r}, and the generation prompt does not show that "
            "a model says it",
        )
    return lead


def _with_thoughts(draft: Draft) -> Evidence:
    """What stands around a thought in the last answer."""
    evidence = draft.evidence
    if draft.source.marks is None:
        return replace(evidence, no_thoughts="it has no place for thoughts")
    try:
        draft.checked(ONE_THOUGHT, Thinking.KEEP)
    except RecordRefusedError as error:
        if _is_not_taken(error):
            return replace(evidence, no_thoughts=error.detail)
    turns = draft.turns(ONE_THOUGHT, Thinking.KEEP)
    try:
        written = draft.writer.write(turns, ())
        spans = draft.spans(written, turns, ())
    except RecordRefusedError as error:
        return replace(evidence, no_thoughts=error.detail)
    said = written.text[spans[0].start : spans[0].end] if spans else ""
    before, found, rest = said.partition(_THOUGHT)
    between, found_words, _ = rest.partition(_FIRST_ANSWER)
    if not found or not found_words or _FIRST_QUESTION in before:
        return replace(evidence, no_thoughts="a thought is not in the learned text")
    proven = replace(evidence, around=(before, between), no_thoughts="")
    try:
        Draft(draft.writer, draft.source, proven).checked(TWO_THOUGHTS, Thinking.KEEP)
    except RecordRefusedError as error:
        return replace(evidence, no_thoughts=error.detail)
    return proven


def _with_calls(draft: Draft) -> Evidence:
    """Whether calls of tools are proven, in the first style that the template takes."""
    if not draft.source.tools:
        return replace(draft.evidence, no_calls="it has no format for tools")
    problems: list[str] = []
    for style in CALL_STYLES:
        tried = Draft(draft.writer, draft.source, replace(draft.evidence, style=style))
        try:
            rendered = tried.checked(WITH_CALL, Thinking.KEEP)
        except RecordRefusedError as error:
            problems.append(error.detail)
            continue
        first = rendered.spans[0]
        said = rendered.text[first.start : first.end]
        # Its value is the one word that the description of the tool does not hold.
        if (
            all(said.count(word) == 1 for word in _CALL_WORDS)
            and rendered.text.count(_CALL_WORDS[2]) == 1
        ):
            return replace(tried.evidence, no_calls=None)
        problems.append("a call's name and arguments are not in the learned text just once")
    return replace(draft.evidence, no_calls="; or ".join(dict.fromkeys(problems)))


def _conversation(*messages: Message, tools: Sequence[dict[str, object]] = ()) -> Conversation:
    return Conversation(messages=messages, tools=tuple(tools))


def _said(role: str) -> Callable[..., Message]:
    def message(content: str, **more: object) -> Message:
        return Message(role=role, content=content, **more)  # pyright: ignore[reportArgumentType]

    return message


_FIRST_QUESTION, _FIRST_ANSWER, _THOUGHT = "Vexquib", "Jorplat", "Quimboz"
_CALL_WORDS = ("Frabjop", "Gwizzel", "Snorvak")
CALL_STYLES = tuple(
    CallStyle(has_text_arguments=as_text, has_null_words=as_null)
    for as_null in (False, True)
    for as_text in (False, True)
)
_user, _answer = _said("user"), _said("assistant")

ONE_TURN = _conversation(_user(_FIRST_QUESTION), _answer(_FIRST_ANSWER))
TWO_TURNS = _conversation(*ONE_TURN.messages, _user("Wumfitz"), _answer("Dralquo"))
ONE_THOUGHT = _conversation(_user(_FIRST_QUESTION), _answer(_FIRST_ANSWER, thought=_THOUGHT))
TWO_THOUGHTS = _conversation(
    *ONE_THOUGHT.messages, _user("Wumfitz"), _answer("Dralquo", thought="Plovnix")
)
WITH_CALL = _conversation(
    _user(_FIRST_QUESTION),
    _answer(
        "",
        tool_calls=(
            ToolCall(
                name=_CALL_WORDS[0], arguments={_CALL_WORDS[1]: _CALL_WORDS[2]}, id="q1w2e3r4t"
            ),
        ),
    ),
    Message(role="tool", content="Thrumbek", tool_call_id="q1w2e3r4t", name=_CALL_WORDS[0]),
    _answer(_FIRST_ANSWER),
    tools=[
        {
            "type": "function",
            "function": {
                "name": _CALL_WORDS[0],
                "description": "Yubbins",
                "parameters": {
                    "type": "object",
                    "properties": {_CALL_WORDS[1]: {"type": "string", "description": "Klarnot"}},
                    "required": [_CALL_WORDS[1]],
                },
            },
        }
    ],
)
