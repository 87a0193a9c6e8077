"""How models write calls of tools: one row a format, chosen by what the chat template says."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from llm_infer.tools.calls import Call, Reader, Signatures, calls_of, json_values
from llm_infer.tools.harmony import MARKS
from llm_infer.tools.xml_formats import read_dsml, read_glm, read_qwen


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """Where calls stand in an answer, and how they are read."""

    name: str
    signs: tuple[str, ...]
    """A chat template that has one of these asks for this format."""
    openings: tuple[str, ...]
    """What a block of calls begins with."""
    closings: tuple[str, ...] = ()
    """What it ends with; nothing: with the answer."""
    opens_answer: bool = False
    """Whether only the beginning of the answer may be a block."""
    has_channels: bool = False
    """Whether thoughts and words are marked, too, so that answers without calls must be read."""
    marks: tuple[str, ...] = ()
    """Special tokens that it is written with, which decoding would leave out."""
    read: Reader


def format_of(template: str) -> CallFormat | None:
    """The first format whose signs a chat template has; None where it has those of none."""
    return next((one for one in FORMATS if any(sign in template for sign in one.signs)), None)


def _tagged(block: str, _: Signatures) -> list[Call] | None:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`; the model's end may stand for the
    last tag.
    """
    return calls_of(json_values(block.removeprefix("<tool_call>").removesuffix("</tool_call>")))


def _bare(block: str, _: Signatures) -> list[Call] | None:
    """`{"name": …, "parameters": {…}}`, several with `;` between."""
    return calls_of(json_values(block.removeprefix("<|python_tag|>"), between=";"))


def _listed(block: str, _: Signatures) -> list[Call] | None:
    """`[TOOL_CALLS] [{…}, …]`, or since Mistral's tokenizer v11 `[TOOL_CALLS]NAME[ARGS]{…}` for
    each.
    """
    parts = block.split("[TOOL_CALLS]")[1:]
    if "[ARGS]" not in block:
        values = json_values(parts[0]) if len(parts) == 1 else None
        is_list = values is not None and len(values) == 1 and isinstance(values[0], list)
        return calls_of(cast("list[object]", values[0])) if is_list and values else None
    named = (part.partition("[ARGS]") for part in parts)
    return _named((name.partition("[CALL_ID]")[0], text) for name, _, text in named)


_DEEPSEEK_CALL = re.compile(
    r"<｜tool▁call▁begin｜>"
    r"(?:function<｜tool▁sep｜>(?P<older>[^\n<]+)\n```json\n(?P<fenced>.*?)\n```"
    r"|(?P<name>[^\n<]+)<｜tool▁sep｜>(?P<text>.*?))"
    r"<｜tool▁call▁end｜>\s*",
    re.DOTALL,
)


def _fenced(block: str, _: Signatures) -> list[Call] | None:
    """DeepSeek's marks: V3 and R1 fence the arguments, V3.1 has name and arguments alone."""
    body = block.removeprefix("<｜tool▁calls▁begin｜>").removesuffix("<｜tool▁calls▁end｜>").strip()
    found = list(_DEEPSEEK_CALL.finditer(body))
    if sum(len(one[0]) for one in found) != len(body):
        return None
    return _named((one["older"] or one["name"], one["fenced"] or one["text"]) for one in found)


_ACTION = re.compile(r"Action:[ \t]*(?P<name>[^\n]+?)[ \t]*\nAction Input:")


def _acted(block: str, _: Signatures) -> list[Call] | None:
    """`Action: NAME`, and in the next line `Action Input: {…}`."""
    before, *parts = _ACTION.split(block)
    return None if before else _named(zip(parts[::2], parts[1::2], strict=True))


def _unread(block: str, _: Signatures) -> list[Call] | None:
    raise AssertionError(f"{block[:40]!r}: messages with channels are not read by block")


_GLM_MARKS = tuple(
    f"<{slash}{tag}>" for tag in ("tool_call", "arg_key", "arg_value") for slash in ("", "/")
)

FORMATS = (
    CallFormat(
        name="harmony",
        signs=("<|channel|>",),
        openings=(),
        has_channels=True,
        marks=MARKS,
        read=_unread,
    ),
    CallFormat(
        name="dsml",
        signs=("｜DSML｜",),
        openings=("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"),
        closings=("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"),
        marks=("｜DSML｜",),
        read=read_dsml,
    ),
    CallFormat(
        name="glm",
        signs=("<arg_key>",),
        openings=("<tool_call>",),
        closings=("</tool_call>",),
        marks=_GLM_MARKS,
        read=read_glm,
    ),
    CallFormat(
        name="qwen-coder",
        signs=("<function=",),
        openings=("<tool_call>",),
        closings=("</tool_call>",),
        marks=("<tool_call>", "</tool_call>"),
        read=read_qwen,
    ),
    CallFormat(
        name="deepseek",
        signs=("<｜tool▁calls▁begin｜>",),
        openings=("<｜tool▁calls▁begin｜>",),
        closings=("<｜tool▁calls▁end｜>",),
        marks=(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
        ),
        read=_fenced,
    ),
    CallFormat(
        name="mistral",
        signs=("[TOOL_CALLS]",),
        openings=("[TOOL_CALLS]",),
        marks=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        read=_listed,
    ),
    CallFormat(
        name="hermes",
        signs=("<tool_call>",),
        openings=("<tool_call>",),
        closings=("</tool_call>",),
        marks=("<tool_call>", "</tool_call>"),
        read=_tagged,
    ),
    CallFormat(
        name="llama",
        signs=("<|python_tag|>", '{"name": function name, "parameters"'),
        openings=("<|python_tag|>", "{"),
        opens_answer=True,
        marks=("<|python_tag|>",),
        read=_bare,
    ),
    CallFormat(
        name="react",
        signs=("Action Input:",),
        openings=("Action:",),
        read=_acted,
    ),
)
"""Rows whose signs are rarer stand first."""

FORCED = CallFormat(name="forced", signs=(), openings=("{",), opens_answer=True, read=_bare)
"""An answer that a JSON schema holds to one call: `{"name": …, "arguments": {…}}`."""


def _named(pairs: Iterable[tuple[str, str]]) -> list[Call] | None:
    """Names, and arguments as JSON."""
    fields: list[object] = []
    for name, text in pairs:
        values = json_values(text)
        if values is None or len(values) != 1:
            return None
        fields.append({"name": name.strip(), "arguments": values[0]})
    return calls_of(fields)
