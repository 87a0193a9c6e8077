"""Conversations of unlikely words that show, before a run, what a template does with each part."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile

from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, ToolCall
from llm_data.records import Reason, RecordRefusedError
from llm_data.templates.proof import Evidence, check_text
from llm_data.templates.source import EOS, Rendered, SpecialTokens, TemplateSource, Thinking
from llm_data.templates.spans import derived_spans, marked_spans, prompt_of, unproven
from llm_data.templates.turns import turns_of
from llm_data.templates.writer import Turn, Writer


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
                arguments_as_text=self.evidence.arguments_as_text,
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
        choices = {Thinking.ON: True, Thinking.OFF: False, Thinking.KEEP: None}
        written = self.writer.write(
            turns,
            tools,
            enable_thinking=choices[thinking],
            add_generation_prompt=add_generation_prompt,
        )
        name = self.source.name
        if self.writer.has_marks:
            spans = marked_spans(name, written, turns)
        else:
            spans = derived_spans(self.writer, written, turns, tools, ends=self.evidence.ends)
        check_text(name, written.text, spans, turns, tools, self.evidence)
        return Rendered(written.text, spans)


def prove(writer: Writer, source: TemplateSource, special: SpecialTokens) -> Evidence:
    """What holds for every conversation of a kind; UsageError if plain ones cannot be proven."""
    try:
        evidence = Evidence(ends=_ends(writer, source, special))
        evidence = replace(evidence, lead=_lead(Draft(writer, source, evidence)))
        draft = Draft(writer, source, evidence)
        for conversation in (ONE_TURN, TWO_TURNS, WITH_SYSTEM):
            _try_plain(draft, conversation)
    except RecordRefusedError as error:
        raise UsageError(f"no proven mask: {error.detail}") from None
    evidence = _with_thoughts(draft)
    draft = Draft(writer, source, evidence)
    for thinking in Thinking:
        try:
            draft.checked(TWO_TURNS, thinking)
        except RecordRefusedError as error:
            if _is_not_taken(error):
                continue
            raise UsageError(f"no proven mask with --thinking {thinking}: {error.detail}") from None
    return _with_calls(draft)


def _try_plain(draft: Draft, conversation: Conversation) -> None:
    """A conversation without tools and thoughts; what the template itself refuses is no problem."""
    try:
        draft.checked(conversation, Thinking.KEEP)
    except RecordRefusedError as error:
        if conversation is ONE_TURN or not _is_not_taken(error):
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
            source.name, "it writes no end token after an answer; a model would never learn to stop"
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


def _lead(draft: Draft) -> str:
    """What a plain answer's learned text has before its words: often nothing, or a space."""
    writer, name = draft.writer, draft.source.name
    turns = draft.turns(ONE_TURN, Thinking.KEEP)
    written = writer.write(turns, ())
    if writer.has_marks:
        spans = marked_spans(name, written, turns)
    else:
        spans = derived_spans(writer, written, turns, (), ends=draft.evidence.ends)
    if len(spans) != 1 or _FIRST_ANSWER not in written.text[spans[0].start : spans[0].end]:
        raise unproven(name, "the marked text does not hold the answer")
    start = spans[0].start
    lead = written.text[start : written.text.index(_FIRST_ANSWER)]
    if _FIRST_QUESTION in lead:
        raise unproven(name, "the marked text holds the user's message")
    prompt = prompt_of(writer, written.text, turns, (), 1)
    if prompt is not None and len(prompt) > start:
        raise unproven(
            name,
            f"the marked text begins with {written.text[start : len(prompt)]!r}, which is the "
            "prompt and not the answer; want {% generation %} behind it",
        )
    if lead.strip() and (prompt is None or len(prompt) < start):
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
        if draft.writer.has_marks:
            spans = marked_spans(draft.source.name, written, turns)
        else:
            spans = derived_spans(draft.writer, written, turns, (), ends=evidence.ends)
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
    """Whether calls of tools are proven, with arguments as an object or as their JSON text."""
    if not draft.source.tools:
        return replace(draft.evidence, no_calls="it has no format for tools")
    problems: list[str] = []
    for as_text in (False, True):
        tried = Draft(
            draft.writer, draft.source, replace(draft.evidence, arguments_as_text=as_text)
        )
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
    return replace(draft.evidence, no_calls=problems[0])


def _conversation(*messages: Message, tools: Sequence[dict[str, object]] = ()) -> Conversation:
    return Conversation(messages=messages, tools=tuple(tools))


def _said(role: str) -> Callable[..., Message]:
    def message(content: str, **more: object) -> Message:
        return Message(role=role, content=content, **more)  # pyright: ignore[reportArgumentType]

    return message


_FIRST_QUESTION, _FIRST_ANSWER, _THOUGHT = "Vexquib", "Jorplat", "Quimboz"
_CALL_WORDS = ("Frabjop", "Gwizzel", "Snorvak")
_user, _answer = _said("user"), _said("assistant")

ONE_TURN = _conversation(_user(_FIRST_QUESTION), _answer(_FIRST_ANSWER))
TWO_TURNS = _conversation(*ONE_TURN.messages, _user("Wumfitz"), _answer("Dralquo"))
WITH_SYSTEM = _conversation(Message(role="system", content="Zyltham"), *TWO_TURNS.messages)
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
