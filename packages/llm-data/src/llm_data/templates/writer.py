"""Jinja as Hugging Face's chat templates need it, with a record of what stands between the marks
`{% generation %}` and `{% endgeneration %}`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_data.errors import UsageError
from llm_data.records import Reason, RecordRefusedError
from llm_data.templates.source import SpecialTokens, TemplateSource

Turn = Mapping[str, Any]

_MARKS = "generation_marks"
# What a template's own expressions can raise when a message is not as they expect it.
_REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Mark(NamedTuple):
    """A stretch between generation marks: where it stands, what it says, whose turn it is.

    `message` is None where the template's variables do not tell.
    """

    start: int
    text: str
    message: int | None


class Written(NamedTuple):
    """What a template writes."""

    text: str
    marks: tuple[Mark, ...]


class _Recorder:
    """The stretches of one rendering, noted while it runs."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.blocks: list[str] = []
        self.marks: list[Mark] = []
        self._length = 0
        self._counted = 0
        self._numbers = {
            id(turn): number for number, turn in enumerate(turns) if turn["role"] == "assistant"
        }

    def note(self, text: str, variables: Mapping[str, object] | None) -> None:
        """A stretch that begins where the text written so far ends, and what the template calls
        its values there.
        """
        self._length += sum(map(len, self.blocks[self._counted :]))
        self._counted = len(self.blocks)
        found: set[int] = set()
        if variables is not None:
            numbers = (self._numbers.get(id(value)) for value in variables.values())
            found = {number for number in numbers if number is not None}
        self.marks.append(Mark(self._length, text, found.pop() if len(found) == 1 else None))

    def written(self) -> Written:
        """All of it. A stretch for each answer is one in the order of the answers."""
        numbers = self._numbers.values()
        marks = self.marks
        if len(marks) == len(numbers):
            pairs = zip(marks, numbers, strict=True)
            marks = [mark._replace(message=number) for mark, number in pairs]
        return Written("".join(self.blocks), tuple(marks))


class _GenerationTag(Extension):
    """Says where a stretch stands and what it says."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration is a set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("noted", [self.context()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def context(self) -> nodes.Expr:
        """What `noted` is told: here only what the whole template sees."""
        return nodes.ContextReference()

    def noted(self, context: Context, caller: Callable[[], str]) -> str:
        """The stretch, written down."""
        text = caller()
        recorder = context.parent.get(_MARKS)
        if isinstance(recorder, _Recorder):
            recorder.note(text, self.variables(context))
        return text

    def variables(self, context: Context) -> Mapping[str, object] | None:
        """The values in sight, where they are asked for."""
        del context


class _TellingTag(_GenerationTag):
    """Says too whose turn it is, by the variables in sight; copying those takes time."""

    def context(self) -> nodes.Expr:
        return nodes.DerivedContextReference()

    def variables(self, context: Context) -> Mapping[str, object]:
        return context.parent


class Writer:
    """A compiled template with a tokenizer's special tokens."""

    def __init__(self, source: TemplateSource, special: SpecialTokens) -> None:
        self.source = source
        self.has_marks = "generation" in source.text and "endgeneration" in source.text
        self.knows_thinking = "enable_thinking" in source.text
        self._asks_for_today = "strftime_now" in source.text and source.date is None
        self._constants = special.named()

    def write(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Mapping[str, object]],
        *,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = False,
    ) -> Written:
        """The text; RecordRefusedError with the template's own words if it does not take this."""
        variables: dict[str, Any] = {
            **self._constants,
            "messages": list(turns),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        written = self._written(variables, turns, _GenerationTag)
        if any(mark.message is None for mark in written.marks):
            written = self._written(variables, turns, _TellingTag)
        return written

    def _written(
        self, variables: dict[str, Any], turns: Sequence[Turn], tag: type[_GenerationTag]
    ) -> Written:
        recorder = variables[_MARKS] = _Recorder(turns)
        template = _compiled(self.source, tag)
        try:
            for block in template.generate(variables):
                recorder.blocks.append(block)
        except _REFUSALS as error:
            detail = f"template {self.source.name}: {error}"
            if self._asks_for_today and "strftime_now" in str(error):
                detail += (
                    "; it asks for today's date, which would change the output from day to day: "
                    "want a template with a fixed date"
                )
            raise RecordRefusedError(Reason.NOT_IN_TEMPLATE, detail) from None
        return recorder.written()


@lru_cache(maxsize=64)
def _compiled(source: TemplateSource, tag: type[_GenerationTag]) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[tag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    if source.date is not None:
        day = datetime.fromisoformat(source.date)
        environment.globals["strftime_now"] = day.strftime
    try:
        return environment.from_string(source.text)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"template {source.name}: line {error.lineno}: {error.message}") from None


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML; transformers has this one in its place.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
