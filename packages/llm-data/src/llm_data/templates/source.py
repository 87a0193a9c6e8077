"""What a template is before it is compiled, and what it makes of a conversation."""

import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple, cast

from llm_data.errors import FormatError, did_you_mean, listed

# The facts of a library template stand in a comment that opens its file, as TOML.
_HEADER = re.compile(r"\A\{#-?\s*\n(.*?)-?#\}", re.DOTALL)
_FACTS = ("about", "end", "thinking", "tools", "system")
THINK = ("<think>\n", "\n</think>\n\n")
EOS = "eos_token"


class Thinking(StrEnum):
    """What becomes of an assistant's thoughts.

    ON: a missing thought is added, empty, and learned. OFF: thoughts are taken out, and an empty
    one that is not learned stands before each answer. KEEP: thoughts stay where they are, and an
    empty one that is not learned stands where none is. A template without a place for thoughts
    gets those that remain as part of the answer, between `<think>` and `</think>`; none are added.
    """

    ON = "on"
    OFF = "off"
    KEEP = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The texts of a tokenizer's special tokens."""

    bos: str | None
    eos: str | None
    pad: str | None = None
    unk: str | None = None

    def named(self) -> dict[str, str]:
        """Those that exist, by the names that templates have for them."""
        every = {
            "bos_token": self.bos,
            "eos_token": self.eos,
            "pad_token": self.pad,
            "unk_token": self.unk,
        }
        return {name: text for name, text in every.items() if text is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSource:
    """A chat template as text, and what its author says of it; small, and it can be pickled.

    `ends` are the tokens that end an answer, `eos_token` for the tokenizer's own; empty where
    only the text can tell. `marks` stand around a thought, None where the template has no place
    for one. `tools` names the format of tool calls, empty where there is none. `date`
    (YYYY-MM-DD) is what a template that asks for today gets; without one, such a template is
    refused.
    """

    name: str
    text: str
    ends: tuple[str, ...] = ()
    marks: tuple[str, str] | None = None
    tools: str = "its own"
    system: str = "its own"
    about: str = ""
    date: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return sha256(self.text.encode()).hexdigest()


class Span(NamedTuple):
    """Characters of a rendered text; `message` is the number of the turn that they belong to."""

    start: int
    end: int
    message: int


class Rendered(NamedTuple):
    """A conversation as text, and what an assistant says in it: in order, disjoint."""

    text: str
    spans: tuple[Span, ...]


def parse_facts(name: str, text: str) -> TemplateSource:
    """A template whose text opens with its facts; FormatError if they are not as they should be."""
    header = _HEADER.match(text)
    if header is None:
        raise FormatError(f"{name}: want a comment of facts ({', '.join(_FACTS)}) at the start")
    try:
        facts = tomllib.loads(header[1])
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{name}: the facts are not TOML: {error}") from None
    for key in facts:
        if key not in _FACTS:
            raise FormatError(
                f"{name}: unknown fact {key!r}; want {listed(_FACTS)}{did_you_mean(key, _FACTS)}"
            )
    marks = tuple(_texts(name, facts, "thinking"))
    if len(marks) not in (0, 2):
        raise FormatError(f"{name}: thinking has {len(marks)} texts, want the two around a thought")
    return TemplateSource(
        name=name,
        text=text,
        ends=tuple(_texts(name, facts, "end")),
        marks=(marks[0], marks[1]) if marks else None,
        tools=_text(name, facts, "tools"),
        system=_text(name, facts, "system"),
        about=_text(name, facts, "about"),
    )


def _text(name: str, facts: dict[str, object], key: str) -> str:
    value = facts.get(key, "")
    if not isinstance(value, str):
        raise FormatError(f"{name}: {key} is {value!r}, want a text")
    return value


def _texts(name: str, facts: dict[str, object], key: str) -> list[str]:
    value = facts.get(key, [])
    if not isinstance(value, list) or not all(
        isinstance(one, str) for one in cast("list[object]", value)
    ):
        raise FormatError(f"{name}: {key} is {value!r}, want a list of texts")
    return cast("list[str]", value)
