"""Arguments written as bare text, typed by the tool's JSON schema."""

import json

import pytest

from llm_infer.tools.calls import typed
from llm_infer.tools.formats import FORMATS
from llm_infer.tools.splitter import CallSplitter, signatures

FORM = {form.name: form for form in FORMATS}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("12", {"type": "integer"}, 12),
        ("12", {"type": "number"}, 12),
        ("12", {"type": "string"}, "12"),
        ("12", None, 12),
        ("12", {}, 12),
        ("a b", None, "a b"),
        ("0012", {"type": "string"}, "0012"),
        ("0012", None, "0012"),
        ("true", {"type": "boolean"}, True),
        # As str() writes them, through which templates put them.
        ("True", {"type": "boolean"}, True),
        ("None", {"type": ["string", "null"]}, None),
        ("null", {"type": "string"}, "null"),
        ("12", {"type": ["string", "null"]}, "12"),
        ("12", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 12),
        ("12", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, 12),
        ("[1]", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "[1]"),
        ("1", {"enum": ["1", "2"]}, "1"),
        ("1", {"enum": [1, 2]}, 1),
        ("1", {"const": "1"}, "1"),
        ('{"a": [1, null]}', {"type": "object"}, {"a": [1, None]}),
        # Not held to the schema: the tool says what is wrong with it.
        ("soon", {"type": "integer"}, "soon"),
        ("1.5", {"type": "integer"}, 1.5),
        ('"quoted"', {"type": "string"}, '"quoted"'),
        ('"quoted"', None, '"quoted"'),
        ("NaN", {"type": "number"}, "NaN"),
        ("", {"type": "integer"}, ""),
        (" x\n", {"type": "string"}, " x\n"),
        ("[" * 5000, {"type": "array"}, "[" * 5000),
        ("1", True, 1),
        ("1", {"$ref": "#/$defs/N"}, 1),
    ],
)
def test_a_text_is_of_a_type_that_the_schema_allows(text, schema, value):
    found = typed(text, schema)
    assert found == value
    assert type(found) is type(value)


def _tool(**properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": "write", "parameters": parameters}}


TOOLS = [_tool(path={"type": "string"}, code={"type": "string"}, times={"type": "integer"})]
CODE = 'if a < 1:\n    print("</x>")\n'
WRITTEN = {
    "glm": (
        "<tool_call>write\n<arg_key>path</arg_key>\n<arg_value>7</arg_value>\n"
        f"<arg_key>code</arg_key>\n<arg_value>{CODE}</arg_value>\n"
        "<arg_key>times</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    ),
    "qwen-coder": (
        "<tool_call>\n<function=write>\n<parameter=path>\n7\n</parameter>\n"
        f"<parameter=code>\n{CODE}\n</parameter>\n"
        "<parameter=times>\n2\n</parameter>\n</function>\n</tool_call>"
    ),
    "dsml": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="write">\n'
        '<｜DSML｜parameter name="path" string="true">7</｜DSML｜parameter>\n'
        f'<｜DSML｜parameter name="code" string="true">{CODE}</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="times" string="false">2</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    ),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_strings_stay_as_they_were_written(form, size):
    splitter, text = CallSplitter(FORM[form], signatures(TOOLS)), WRITTEN[form]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    parts = [part for piece in pieces for part in splitter.push(piece)] + list(splitter.flush())
    (call,) = parts
    assert (call.name, json.loads(call.arguments)) == (
        "write",
        {"path": "7", "code": CODE, "times": 2},
    )


@pytest.mark.parametrize("parameters", [None, {}, {"properties": None}, {"properties": []}])
def test_tools_without_a_schema_are_taken(parameters):
    tool = {"type": "function", "function": {"name": "write", "parameters": parameters}}
    assert signatures([tool]) == {"write": {}}
