"""Templates given as slots, the fields of MindSpeed-LLM's templates.json and of LLaMA-Factory's
registry, written as chat templates with marked answers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from llm_data.errors import UsageError, did_you_mean, listed
from llm_data.templates.library import tool_formats, with_tool_format
from llm_data.templates.source import EOS, THINK, TemplateSource, parse_facts

Slot = str | tuple[str, ...]

_PLACEHOLDER = re.compile(r"\{\{(content|idx|name|arguments)\}\}")
_TOOL_FORMATS = {"default": "react", "qwen3": "qwen", "qwen2": "qwen"}
_CLASSES = ("Template", "LFDefaultTemplate", "Llama2Template", "ReasoningTemplate")
_FORMATS = tuple(
    f"format_{name}"
    for name in (
        "user", "assistant", "system", "function", "observation", "tools", "separator", "prefix",
    )
)  # fmt: skip
_FIELDS = (
    *_FORMATS, "name", "default_system", "stop_words", "thought_words", "efficient_eos",
    "replace_eos", "force_system", "template_class",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The texts around each part of a conversation, `{{content}}` and `["bos_token"]` inside.

    `header` opens an answer, `lead` is what a model says before its words, `end` its end token,
    `after` what follows it unlearned. `separator` stands between an answer and the next turn.
    """

    name: str
    about: str = ""
    prefix: tuple[Slot, ...] = ()
    system: tuple[Slot, ...] = ("{{content}}",)
    user: tuple[Slot, ...] = ("{{content}}",)
    tool: tuple[Slot, ...] = ()
    header: str = ""
    lead: str = ""
    end: str = EOS
    after: str = ""
    separator: str = ""
    default_system: str = ""
    tools: str = "react"
    call: tuple[Slot, ...] = ()
    marks: tuple[str, str] | None = None
    system_in_user: bool = False
    further_ends: tuple[str, ...] = field(default=())


def read_entry(entry: Mapping[str, object], *, where: str) -> Slots:
    """One entry of such a file; UsageError where it says what cannot be done."""
    for key in entry:
        if key not in _FIELDS:
            hint = did_you_mean(key, _FIELDS)
            raise UsageError(
                f"{where}: unknown field {key!r}{hint}; want {listed(_FIELDS, most=20)}"
            )
    kind = entry.get("template_class") or "Template"
    if kind not in _CLASSES:
        raise UsageError(f"{where}: template_class {kind!r}, want {listed(_CLASSES)}")
    slots = {key: _slots(entry.get(key), where=f"{where}: {key}") for key in _FORMATS}
    user = slots["format_user"] or ("{{content}}",)
    stops = _texts(entry.get("stop_words"), where=f"{where}: stop_words")
    words = _texts(entry.get("thought_words"), where=f"{where}: thought_words")
    if len(words) not in (0, 2):
        raise UsageError(f"{where}: thought_words has {len(words)} texts, want two")
    call = tuple(slot for slot in slots["format_function"] if slot not in (("eos_token",),))
    found = Slots(
        name=str(entry.get("name", where)),
        prefix=slots["format_prefix"],
        system=slots["format_system"] or ("{{content}}",),
        user=user,
        tool=slots["format_observation"] or user,
        separator="".join(slot for slot in slots["format_separator"] if isinstance(slot, str))
        if kind in ("Template", "Llama2Template")
        else "",
        default_system="".join(_texts(entry.get("default_system"), where=where)),
        tools=_tool_format(entry.get("format_tools"), where=where),
        call=call if any(isinstance(slot, str) and "{{name}}" in slot for slot in call) else (),
        marks=((words[0], words[1]) if words else THINK) if kind == "ReasoningTemplate" else None,
        system_in_user=kind == "Llama2Template",
    )
    return _with_end(
        found,
        slots["format_assistant"],
        stops=stops,
        is_efficient=bool(entry.get("efficient_eos")),
        replaces_eos=bool(entry.get("replace_eos")),
        where=where,
    )


def compile_slots(slots: Slots) -> TemplateSource:
    """A chat template that writes what the slots say."""
    text = "\n".join([*_header(slots), *_opening(slots), *_turns(slots), *_prompt(slots), ""])
    return with_tool_format(parse_facts(slots.name, text))


def _with_end(
    slots: Slots,
    answer: Sequence[Slot],
    *,
    stops: Sequence[str],
    is_efficient: bool,
    replaces_eos: bool,
    where: str,
) -> Slots:
    """How an answer ends: what its slot says, else the stop word that opens the next turn, else
    what separates turns, else the end-of-text token.
    """
    if replaces_eos and not stops:
        raise UsageError(
            f"{where}: replace_eos wants stop_words, the first takes eos_token's place"
        )
    eos = stops[0] if replaces_eos else EOS
    pieces = [eos if slot == ("eos_token",) else slot for slot in answer] or ["{{content}}"]
    joined = "".join(piece for piece in pieces if isinstance(piece, str))
    lead, found, tail = joined.partition("{{content}}")
    if not found:
        raise UsageError(f"{where}: format_assistant has no {{{{content}}}}")
    slots = replace(slots, lead=lead)
    if tail.strip():
        after = tail[len(tail.rstrip()) :]
        return replace(slots, end=tail.rstrip(), after=after)
    if not is_efficient:
        return replace(slots, end=eos)
    opening = slots.user[0]
    if stops and isinstance(opening, str) and opening.startswith(stops[0]):
        return replace(slots, end=stops[0], further_ends=tuple(stops[1:]))
    if slots.separator.strip():
        after = slots.separator[len(slots.separator.rstrip()) :]
        return replace(slots, end=slots.separator.rstrip(), after=after, separator="")
    return slots


def _header(slots: Slots) -> list[str]:
    ends = [slots.end, *slots.further_ends]
    facts = ["{#-"]
    if slots.about:
        facts.append(f"about = {_toml(slots.about)}")
    facts.append(f"end = [{', '.join(map(_toml, ends))}]")
    if slots.marks:
        facts.append(f"thinking = [{', '.join(map(_toml, slots.marks))}]")
    facts.append(f"tools = {_toml(slots.tools)}")
    facts.append(
        f"system = {_toml('in the first user message' if slots.system_in_user else 'taken')}"
    )
    return [*facts, "-#}"]


def _opening(slots: Slots) -> list[str]:
    lines = [
        "{%- set has_system = messages and messages[0]['role'] == 'system' -%}",
        "{%- set system = messages[0]['content'] if has_system else '' -%}",
    ]
    if slots.default_system:
        lines.append(f"{{%- set system = system or {_quoted(slots.default_system)} -%}}")
    if slots.tools:
        told = "tools_text(tools)"
        # These begin with an empty line, which is only meant to stand after a system text.
        if slots.tools in ("qwen", "glm4_moe"):
            told = "(tools_text(tools) if system else tools_text(tools) | trim)"
        lines += ["{%- if tools -%}", f"{{%- set system = system + {told} -%}}", "{%- endif -%}"]
    if slots.prefix:
        lines.append(f"{{{{- {_expression(slots.prefix)} -}}}}")
    system = _expression(slots.system, content="system")
    if slots.system_in_user:
        return [*lines, f"{{%- set system = {system} if system else '' -%}}"]
    return [*lines, f"{{{{- {system} if system else '' -}}}}"]


def _turns(slots: Slots) -> list[str]:
    content = "message['content']"
    if slots.system_in_user:
        content = "(system if loop.first else '') + message['content']"
    stop, user, tool = slots.end, slots.user, slots.tool or slots.user
    lines = ["{%- for message in messages[1 if has_system else 0:] -%}"]
    if slots.separator:
        lines.append(f"{{{{- {_quoted(slots.separator)} if {_AFTER_ANSWER} else '' -}}}}")
    ends_in_next = bool(user) and isinstance(user[0], str) and user[0].startswith(stop)
    lines += ["{%- if message['role'] == 'user' -%}", *_turn(user, slots, content, ends_in_next)]
    lines += ["{%- elif message['role'] == 'tool' -%}"]
    if not slots.header:
        lines.append(
            "{%- if loop.previtem is defined and loop.previtem['role'] == 'tool' -%}\n"
            "{{- raise_exception('two tool messages in a row have no place in its slots') -}}\n"
            "{%- endif -%}"
        )
    lines += _turn(tool, slots, "message['content']", ends_in_next)
    return [*lines, *_answer(slots, ends_in_next)]


_AFTER_ANSWER = "loop.previtem is defined and loop.previtem['role'] == 'assistant'"


def _turn(parts: tuple[Slot, ...], slots: Slots, content: str, ends_in_next: bool) -> list[str]:
    """A user's or a tool's turn; the answer before it may already have written its first token."""
    if ends_in_next and isinstance(parts[0], str):
        stop = next(
            (end for end in (slots.end, *slots.further_ends) if parts[0].startswith(end)), ""
        )
        rest = (parts[0].removeprefix(stop), *parts[1:])
        return [
            f"{{{{- '' if {_AFTER_ANSWER} else {_quoted(stop)} -}}}}",
            f"{{{{- {_expression(rest, content=content)} -}}}}",
        ]
    return [f"{{{{- {_expression(parts, content=content)} -}}}}"]


def _answer(slots: Slots, ends_in_next: bool) -> list[str]:
    lines = ["{%- elif message['role'] == 'assistant' -%}"]
    if slots.header:
        lines.append(f"{{{{- {_quoted(slots.header)} -}}}}")
    thought = ""
    if slots.marks:
        first, second = map(_quoted, slots.marks)
        lines.append(
            f"{{{{- {first} + {second} if message['reasoning_content'] is not defined else '' -}}}}"
        )
        thought = (
            f"{{{{- {first} + message['reasoning_content'] + {second} "
            "if message['reasoning_content'] is defined else '' -}}"
        )
    lines.append("{%- generation -%}")
    if slots.lead and not ends_in_next:
        lines.append(f"{{{{- {_quoted(slots.lead)} -}}}}")
    lines += [thought] if thought else []
    lines += _words(slots, ends_in_next)
    lines += [*_end(slots), "{%- endgeneration -%}"]
    if slots.after:
        lines.append(f"{{{{- {_quoted(slots.after)} -}}}}")
    return [
        *lines,
        "{%- else -%}",
        "{{- raise_exception('a system message stands after the first message') -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]


def _words(slots: Slots, ends_in_next: bool) -> list[str]:
    """An answer's words, or its calls; a call's name follows the header at once in GLM's way."""
    lead = f"{_quoted(slots.lead)} + " if slots.lead and ends_in_next else ""
    if not slots.tools:
        return [f"{{{{- {lead}message['content'] -}}}}"]
    if not slots.call:
        words = f"{lead}message['content']"
        return [f"{{{{- calls_text(message) if message['tool_calls'] else {words} -}}}}"]
    call = _expression(slots.call, name="call.function.name", arguments="call.function.arguments")
    return [
        "{%- if message['tool_calls'] -%}",
        "{{- message['content'] + '\\n' if message['content'] else '' -}}",
        "{%- for call in message['tool_calls'] -%}",
        f"{{{{- {call} -}}}}",
        "{{- '' if loop.last else '\\n' -}}",
        "{%- endfor -%}",
        "{%- else -%}",
        f"{{{{- {lead}message['content'] -}}}}",
        "{%- endif -%}",
    ]


def _end(slots: Slots) -> list[str]:
    if slots.further_ends:
        first, second = _token(slots.end), _token(slots.further_ends[0])
        return [
            f"{{{{- {second} if (loop.nextitem['role'] == 'tool' if loop.nextitem is defined else "
            f"message['tool_calls']) else {first} -}}}}"
        ]
    return [f"{{{{- {_token(slots.end)} -}}}}"]


def _prompt(slots: Slots) -> list[str]:
    lines: list[str] = []
    if slots.header:
        lines.append(f"{{{{- {_quoted(slots.header)} if add_generation_prompt else '' -}}}}")
    if slots.marks:
        first, second = map(_quoted, slots.marks)
        lines.append(
            f"{{{{- {first} + {second} if add_generation_prompt and enable_thinking is defined "
            "and not enable_thinking else '' -}}"
        )
    return lines


def _expression(parts: Sequence[Slot], **values: str) -> str:
    """Slots as a Jinja expression."""
    pieces: list[str] = []
    values = {
        "content": "message['content']",
        "idx": "(loop.index0 // 2) | string",
        **values,
    }
    if "arguments" in values:
        values["arguments"] = f"({values['arguments']} | tojson)"
    for part in parts:
        if isinstance(part, tuple):
            pieces += [_token(name) if name == EOS else f"({name} or '')" for name in part]
            continue
        for at, piece in enumerate(_PLACEHOLDER.split(part)):
            if at % 2:
                pieces.append(values[piece] if piece in values else _quoted(f"{{{{{piece}}}}}"))
            elif piece:
                pieces.append(_quoted(piece))
    return " + ".join(pieces) or "''"


def _token(text: str) -> str:
    return EOS if text == EOS else _quoted(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _toml(text: str) -> str:
    # What JSON writes as a string, TOML reads as the same string.
    return json.dumps(text, ensure_ascii=False)


def _slots(value: object, *, where: str) -> tuple[Slot, ...]:
    """Slots as JSON has them: texts, ["bos_token"], {"token": "<x>"}."""
    if isinstance(value, Mapping):
        value = cast("Mapping[str, object]", value).get("slots", [])
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UsageError(f"{where}: {value!r}, want an object with a list of slots")
    found: list[Slot] = []
    for slot in cast("list[object]", value):
        if isinstance(slot, str):
            found.append(slot)
        elif isinstance(slot, list) and slot in (["bos_token"], ["eos_token"]):
            found.append((str(cast("list[object]", slot)[0]),))
        elif isinstance(slot, Mapping) and "token" in slot:
            found.append(str(cast("Mapping[str, object]", slot)["token"]))
        else:
            raise UsageError(
                f'{where}: slot {slot!r}, want a text, ["bos_token"], ["eos_token"] or '
                '{"token": …}'
            )
    return _joined(found)


def _joined(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    found: list[Slot] = []
    for slot in slots:
        if found and isinstance(slot, str) and isinstance(found[-1], str):
            found[-1] += slot
        else:
            found.append(slot)
    return tuple(found)


def _texts(value: object, *, where: str) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(one, str) for one in cast("list[object]", value)):
        return cast("list[str]", value)
    raise UsageError(f"{where}: {value!r}, want a list of texts")


def _tool_format(value: object, *, where: str) -> str:
    found: object = "default"
    if isinstance(value, Mapping):
        found = cast("Mapping[str, object]", value).get("tool_format", "default")
    if isinstance(found, list):
        found = "".join(map(str, cast("list[object]", found)))
    name = _TOOL_FORMATS.get(str(found), str(found))
    if name not in tool_formats():
        known = [*_TOOL_FORMATS, *tool_formats()]
        raise UsageError(f"{where}: tool_format {found!r}, want one of {listed(known, most=20)}")
    return name
