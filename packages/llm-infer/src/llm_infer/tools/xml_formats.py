"""Calls whose arguments stand between tags, each by itself: GLM, Qwen3-Coder, DeepSeek V3.2 and V4.

Read off the models' chat templates: strings stand there as they are, and what a text means the
tool's schema says, where the format does not.
"""

import re
from collections.abc import Iterable

from llm_infer.tools.calls import Call, Signatures, calls_of, json_values, typed

_GLM_ARGUMENT = re.compile(
    r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<text>.*?)</arg_value>\s*", re.DOTALL
)
_QWEN_FUNCTION = re.compile(r"<function=(?P<name>[^>\n]+)>(?P<body>.*?)</function>\s*", re.DOTALL)
_QWEN_ARGUMENT = re.compile(
    r"<parameter=(?P<key>[^>\n]+)>\n?(?P<text>.*?)\n?</parameter>\s*", re.DOTALL
)
_DSML_FUNCTION = re.compile(
    r'<｜DSML｜invoke name="(?P<name>[^"\n]+)">(?P<body>.*?)</｜DSML｜invoke>\s*', re.DOTALL
)
_DSML_ARGUMENT = re.compile(
    r'<｜DSML｜parameter name="(?P<key>[^"\n]+)" string="(?P<is_text>true|false)">'
    r"(?P<text>.*?)</｜DSML｜parameter>\s*",
    re.DOTALL,
)


def read_glm(block: str, signatures: Signatures) -> list[Call] | None:
    """`<tool_call>NAME`, then `<arg_key>…</arg_key>` and `<arg_value>…</arg_value>` for each."""
    body = block.removeprefix("<tool_call>").removesuffix("</tool_call>").strip()
    name, mark, rest = body.partition("<arg_key>")
    arguments = _all(_GLM_ARGUMENT, mark + rest)
    if arguments is None:
        return None
    return calls_of([_call(name.strip(), _pairs(arguments), signatures)])


def read_qwen(block: str, signatures: Signatures) -> list[Call] | None:
    """`<tool_call><function=NAME>`, then `<parameter=KEY>` and a value in lines of its own."""
    functions = _all(
        _QWEN_FUNCTION, block.removeprefix("<tool_call>").removesuffix("</tool_call>").strip()
    )
    found: list[object] = []
    for function in functions or ():
        arguments = _all(_QWEN_ARGUMENT, function["body"].strip())
        if arguments is None:
            return None
        found.append(_call(function["name"].strip(), _pairs(arguments), signatures))
    return calls_of(found)


def read_dsml(block: str, signatures: Signatures) -> list[Call] | None:  # noqa: ARG001
    """`<｜DSML｜invoke name="…">`, then parameters that say whether they are strings or JSON."""
    body = block
    for mark in ("function_calls", "tool_calls"):
        body = body.removeprefix(f"<｜DSML｜{mark}>").removesuffix(f"</｜DSML｜{mark}>")
    found: list[object] = []
    for function in _all(_DSML_FUNCTION, body.strip()) or ():
        arguments = dict[str, object]()
        each = _all(_DSML_ARGUMENT, function["body"].strip())
        if each is None:
            return None
        for one in each:
            values = [one["text"]] if one["is_text"] == "true" else json_values(one["text"])
            if values is None or len(values) != 1:
                return None
            arguments[one["key"]] = values[0]
        found.append({"name": function["name"], "arguments": arguments})
    return calls_of(found)


def _all(pattern: re.Pattern[str], text: str) -> list[re.Match[str]] | None:
    """The matches that are all of a text, in order; None where something else stands there."""
    found: list[re.Match[str]] = []
    end = 0
    while end < len(text):
        one = pattern.match(text, end)
        if one is None:
            return None
        found.append(one)
        end = one.end()
    return found


def _pairs(arguments: Iterable[re.Match[str]]) -> list[tuple[str, str]]:
    return [(one["key"].strip(), one["text"]) for one in arguments]


def _call(name: str, pairs: Iterable[tuple[str, str]], signatures: Signatures) -> object:
    properties = signatures.get(name, {})
    return {
        "name": name,
        "arguments": {key: typed(text, properties.get(key)) for key, text in pairs},
    }
