"""Chat templates rendered as transformers 5 renders them (utils/chat_template_utils.py there).

A template comes with a model that somebody else made: it runs in Jinja's sandbox.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning; the first is the one that templates read."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    special_tokens: Mapping[str, str],
    variables: Mapping[str, object],
) -> str:
    """The conversation as text, up to where the assistant's answer starts.

    Templates know `special_tokens` and `variables` by name. Raises Jinja's TemplateError.
    """
    return _compiled(template).render(
        messages=[_with_reasoning(message) for message in messages],
        tools=tools,
        documents=None,
        add_generation_prompt=True,
        **{**special_tokens, **variables},
    )


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None; reasoning under the name that templates read, and gpt-oss's."""
    given = {key: value for key, value in message.items() if value is not None}
    found = next((given[key] for key in _REASONING_FIELDS if key in given), None)
    if found is None:
        return given
    return {"thinking": found, **given, "reasoning_content": found}


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}` around what the assistant wrote: marks for training, nothing here."""

    tags = {"generation"}  # noqa: RUF012  declared so by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        """The body by itself."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict(…)` without the type's attributes, which would lead out of the sandbox."""

    def __call__(self, *pairs: Any, **items: Any) -> dict[Any, Any]:
        return dict(*pairs, **items)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        """As dict's."""
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """Refuses underscored names, which would lead out of the sandbox."""

    # `self` among the arguments, so that it can be the name of an item, too.
    def __init__(*arguments: Any, **items: Any) -> None:
        self, *pairs = arguments
        attributes: dict[Any, Any] = dict(*pairs, **items)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template stores {name!r} in a namespace; want no underscore")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape `<`, `>` and `&`."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)
