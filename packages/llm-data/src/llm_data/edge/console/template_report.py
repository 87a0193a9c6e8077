"""What `llm-data templates` shows: the list, and conversations with what is learned marked."""

from dataclasses import dataclass

from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, ToolCall
from llm_data.records import RecordRefusedError
from llm_data.templates import (
    Rendered,
    SpecialTokens,
    Template,
    TemplateSource,
    Thinking,
    library_names,
    library_template,
)

# Shown where no tokenizer says what the special tokens are.
PLACEHOLDERS = SpecialTokens(bos="<bos>", eos="<eos>")
_OPEN, _CLOSE = "⟦", "⟧"
_LEARNED, _PLAIN = "\x1b[1;32m", "\x1b[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRow:
    """A line of the list; `ends` are the tokens that end an answer."""

    name: str
    ends: tuple[str, ...]
    tools: str
    has_thinking: bool
    about: str


def list_templates() -> list[TemplateRow]:
    """The templates that come with the package, by name."""
    sources = [library_template(name) for name in library_names()]
    return [
        TemplateRow(
            name=source.name,
            ends=source.ends,
            tools=source.tools,
            has_thinking=source.marks is not None,
            about=source.about,
        )
        for source in sources
    ]


def show_template(
    source: TemplateSource,
    *,
    special: SpecialTokens = PLACEHOLDERS,
    thinking: Thinking = Thinking.KEEP,
    is_colored: bool = False,
) -> str:
    """Two conversations, one with a tool, as text; what is learned is coloured or in ⟦ ⟧."""
    template = Template(source, special)
    parts = [f"# {source.name}: {source.about}"]
    for title, conversation in (("conversation", CONVERSATION), ("tools", WITH_TOOL)):
        try:
            text = marked(template.render(conversation, thinking=thinking), is_colored=is_colored)
        except RecordRefusedError as error:
            text = f"(refused: {error.detail})"
        parts += [f"## {title}", text]
    return "\n".join(parts) + "\n"


def marked(rendered: Rendered, *, is_colored: bool = False) -> str:
    """A rendered text with its spans coloured, or between ⟦ and ⟧."""
    opening, closing = (_LEARNED, _PLAIN) if is_colored else (_OPEN, _CLOSE)
    pieces: list[str] = []
    start = 0
    for span in rendered.spans:
        pieces += [rendered.text[start : span.start], opening]
        pieces += [rendered.text[span.start : span.end], closing]
        start = span.end
    return "".join([*pieces, rendered.text[start:]])


def parse_thinking(name: str) -> Thinking:
    """`on`, `off` or `keep`."""
    try:
        return Thinking(name)
    except ValueError:
        raise UsageError(f"--thinking {name}: want {', '.join(Thinking)}") from None


_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city"],
        },
    },
}
CONVERSATION = Conversation(
    messages=(
        Message(role="system", content="Answer in one word."),
        Message(role="user", content="What is 1 + 1?"),
        Message(role="assistant", content="Two.", thought="Counting helps."),
        Message(role="user", content="And 2 + 2?"),
        Message(role="assistant", content="Four."),
    )
)
WITH_TOOL = Conversation(
    messages=(
        Message(role="user", content="Is it warm in Oslo?"),
        Message(
            role="assistant",
            tool_calls=(ToolCall(name="get_weather", arguments={"city": "Oslo"}, id="call0weat"),),
        ),
        Message(role="tool", content="31", tool_call_id="call0weat", name="get_weather"),
        Message(role="assistant", content="Very warm."),
    ),
    tools=(_WEATHER,),
)
