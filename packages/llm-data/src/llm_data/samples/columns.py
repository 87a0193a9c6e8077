"""Which columns a format reads, and which words stand for a role; `--map-keys` renames both.

The names of the fields are the keys of `--map-keys`, LLaMA-Factory's and MindSpeed-LLM's. An empty
name switches a column off.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import cast

from llm_data.errors import UsageError, did_you_mean, listed
from llm_data.records import kind_of

KTO_REFUSED = (
    "kto_tag marks single answers as good or bad, which no task here learns; want pairs of chosen "
    """and rejected answers, or '{"kto_tag": ""}' to read the answers alone"""
)


class Format(StrEnum):
    """What a record looks like; the formats that `--format` does not offer belong to handlers."""

    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    OPENAI = "openai"
    STEPS = "steps"
    BELLE = "belle"
    MOSS = "moss"
    LEETCODE = "leetcode"
    STACK_OVERFLOW = "stack-overflow"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaColumns:
    """Of a record with a column for each part; only the prompt and the answer must be there."""

    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str = "history"
    system: str = "system"
    tools: str = "tools"
    chosen: str = "chosen"
    rejected: str = "rejected"
    kto_tag: str = "kto_tag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Keys of a message, and the words of `role_tag` for each role; none for a role not there."""

    role_tag: str
    content_tag: str
    user_tag: tuple[str, ...]
    assistant_tag: tuple[str, ...]
    observation_tag: tuple[str, ...] = ()
    function_tag: tuple[str, ...] = ()
    system_tag: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatColumns:
    """Of a record with a list of messages, in the first of the columns `messages` that it has."""

    messages: tuple[str, ...]
    tags: Tags
    system: str = "system"
    tools: str = "tools"
    chosen: str = "chosen"
    rejected: str = "rejected"
    kto_tag: str = "kto_tag"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepColumns:
    """Of a solution in steps: rewards in `value`, or in a copy of the text in `label`."""

    input: str = "input"
    value: str = "value"
    label: str = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedColumns:
    """Of a corpus whose columns have one name everywhere."""


SHAREGPT = ChatColumns(
    messages=("conversations", "messages"),
    tags=Tags(
        role_tag="from",
        content_tag="value",
        user_tag=("human",),
        assistant_tag=("gpt",),
        observation_tag=("observation",),
        function_tag=("function_call",),
        system_tag=("system",),
    ),
)
# "prompt" is TRL's name for the messages before an answer; "developer" and "function" are OpenAI's
# newer word for system and its older one for tool.
OPENAI = ChatColumns(
    messages=("messages", "conversations", "prompt"),
    tags=Tags(
        role_tag="role",
        content_tag="content",
        user_tag=("user",),
        assistant_tag=("assistant",),
        observation_tag=("tool", "function"),
        function_tag=("function_call",),
        system_tag=("system", "developer"),
    ),
)

Columns = AlpacaColumns | ChatColumns | StepColumns | FixedColumns

_DEFAULTS: Mapping[Format, Columns] = MappingProxyType(
    {
        Format.ALPACA: AlpacaColumns(),
        Format.SHAREGPT: SHAREGPT,
        Format.OPENAI: OPENAI,
        Format.STEPS: StepColumns(),
    }
)
_NEEDED_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag")
_SINGLE_TAGS = ("role_tag", "content_tag")


def columns_of(record_format: Format, map_keys: Mapping[str, object]) -> Columns:
    """The format's columns with those of `--map-keys`; UsageError for a key it does not have."""
    return _renamed(_DEFAULTS.get(record_format, FixedColumns()), record_format, map_keys)


def check_known(map_keys: Mapping[str, object]) -> None:
    """UsageError for a key of `--map-keys` that no format has."""
    known = dict.fromkeys(field.name for columns in _DEFAULTS.values() for field in fields(columns))
    for key in map_keys:
        if key not in known:
            raise UsageError(
                f"--map-keys: no key {key!r} in any format, want {listed(known, most=20)}"
                f"{did_you_mean(key, known)}"
            )


def mapped_columns(map_keys: Mapping[str, object]) -> list[str]:
    """The columns that `--map-keys` asks to be read, by name."""
    return [
        name
        for key, name in map_keys.items()
        if isinstance(name, str) and name and key != "kto_tag"
    ]


def _renamed(columns: Columns, record_format: Format, map_keys: Mapping[str, object]) -> Columns:
    known = [field.name for field in fields(columns)]
    changes: dict[str, object] = {}
    for key, name in map_keys.items():
        if key not in known:
            choices = f"want {listed(known, most=20)}" if known else "its columns have fixed names"
            raise UsageError(
                f"--map-keys: no key {key!r} in the format {record_format.value}, "
                f"{choices}{did_you_mean(key, known)}"
            )
        if key == "tags":
            changes[key] = _tags(name)
        elif not isinstance(name, str):
            raise UsageError(
                f"--map-keys: {key!r} is {kind_of(name)}, want the name of a column as a string, "
                "or an empty string for none"
            )
        elif key == "kto_tag" and name:
            raise UsageError(f"--map-keys: {KTO_REFUSED}")
        else:
            changes[key] = (name,) if key == "messages" else name
    make = cast("Callable[..., Columns]", replace)
    return make(columns, **changes)


def _tags(value: object) -> Tags:
    """All seven anew: a tag that is not given is a role that messages do not have."""
    known = [field.name for field in fields(Tags)]
    if not isinstance(value, dict):
        raise UsageError(f"--map-keys: 'tags' is {kind_of(value)}, want an object")
    given = {tag: word for tag, word in cast("dict[str, object]", value).items() if word}
    for tag, word in given.items():
        if tag not in known:
            raise UsageError(
                f"--map-keys: no tag {tag!r}, want {listed(known)}{did_you_mean(tag, known)}"
            )
        if not isinstance(word, str):
            raise UsageError(f"--map-keys: the tag {tag!r} is {kind_of(word)}, want a string")
    missing = [tag for tag in _NEEDED_TAGS if tag not in given]
    if missing:
        raise UsageError(
            f"--map-keys: no {listed(missing)} in 'tags'; it has {listed(given)}. Tags are all "
            "given anew, those left out are roles that messages do not have"
        )
    words = {tag: word if tag in _SINGLE_TAGS else (word,) for tag, word in given.items()}
    make = cast("Callable[..., Tags]", Tags)
    return make(**words)
