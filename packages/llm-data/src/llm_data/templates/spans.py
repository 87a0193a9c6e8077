"""Where answers stand in a rendered text: by a template's own marks, or derived and proven."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from llm_data.records import Reason, RecordRefusedError
from llm_data.templates.source import THINK, Span
from llm_data.templates.writer import Turn, Writer, Written

_OPENING = THINK[0].strip()


def marked_spans(name: str, written: Written, turns: Sequence[Turn]) -> tuple[Span, ...]:
    """The marked stretches without the white space that ends them, joined where they touch."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    numbers = [mark.message for mark in written.marks]
    if None in numbers and len(numbers) == len(answers):
        numbers = [*answers]
    spans: list[Span] = []
    for mark, number in zip(written.marks, numbers, strict=True):
        end = mark.start + len(mark.text)
        if number is None or written.text[mark.start : end] != mark.text:
            raise unproven(name, "a generation mark does not tell which answer it stands around")
        if spans and spans[-1].message == number and spans[-1].end == mark.start:
            spans[-1] = spans[-1]._replace(end=end)
        elif mark.text:
            spans.append(Span(mark.start, end, number))
    return tuple(
        span._replace(end=span.start + len(written.text[span.start : span.end].rstrip()))
        for span in spans
    )


def derived_spans(
    writer: Writer,
    written: Written,
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, object]],
    *,
    ends: Sequence[str],
    enable_thinking: bool | None = None,
) -> tuple[Span, ...]:
    """What a template without marks writes after the prompt of each answer, up to its end token.

    An answer's prompt is what the template writes for the turns before it when it is asked for a
    generation prompt: what a model sees at inference. It has to be a beginning of the whole text.
    """
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    starts: list[int] = []
    for number in answers:
        prompt = prompt_of(
            writer, written.text, turns, tools, number, enable_thinking=enable_thinking
        )
        if prompt is None:
            raise unproven(
                writer.source.name,
                f"what it writes with a generation prompt before message {number} is not how the "
                "whole conversation begins",
            )
        starts.append(len(prompt))
    spans: list[Span] = []
    for number, (start, limit) in zip(answers, pairwise([*starts, len(written.text)]), strict=True):
        said = _after_words(written.text, turns[number], start, limit)
        found = [at + len(end) for end in ends if (at := written.text.find(end, said, limit)) >= 0]
        if not found:
            raise unproven(
                writer.source.name,
                f"no end token {_choices(ends)} after the answer in message {number}",
            )
        spans.append(Span(start, min(found), number))
    return tuple(spans)


def prompt_of(
    writer: Writer,
    text: str,
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, object]],
    number: int,
    *,
    enable_thinking: bool | None = None,
) -> str | None:
    """What a model sees before it gives answer `number`, None if the text does not begin so.

    Where no thought is to be learned, the prompt of an answer without one is tried first; where
    a prompt opens a thought that the answer does not have, that opening is no part of it.
    """
    choices: list[bool | None] = [enable_thinking]
    if writer.knows_thinking:
        choices = [*dict.fromkeys(["reasoning_content" in turns[number], enable_thinking, None])]
    prompts = [
        writer.write(turns[:number], tools, enable_thinking=choice, add_generation_prompt=True).text
        for choice in choices
    ]
    bare = [prompt.rstrip().removesuffix(_OPENING) for prompt in prompts]
    opened = [one for one, prompt in zip(bare, prompts, strict=True) if one != prompt.rstrip()]
    return next((prompt for prompt in [*prompts, *opened] if text.startswith(prompt)), None)


def unproven(name: str, detail: str) -> RecordRefusedError:
    """A refusal for want of proof."""
    return RecordRefusedError(Reason.UNPROVEN_MASK, f"template {name}: {detail}")


def _after_words(text: str, turn: Turn, start: int, limit: int) -> int:
    """Where the words of an answer end; its end token cannot come before that."""
    said = start
    calls = [call["function"]["name"] for call in turn.get("tool_calls", ())]
    for words in (turn.get("reasoning_content", ""), turn["content"] or "", *calls):
        at = text.find(words.strip(), said, limit)
        # A template may leave out an earlier thought, or write calls before words; what is found
        # is checked against the whole answer afterwards.
        if at >= 0:
            said = at + len(words.strip())
    return said


def _choices(ends: Sequence[str]) -> str:
    return " or ".join(map(repr, ends)) or "(none is known)"
