"""Calls in texts that models write; the texts are those of the models' own chat templates."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_infer.thinking import ThoughtReading
from llm_infer.tools.answers import AnswerReading
from llm_infer.tools.calls import Call
from llm_infer.tools.formats import FORCED, FORMATS, format_of
from llm_infer.tools.splitter import CallReading

FORM = {form.name: form for form in FORMATS if not form.has_channels} | {"forced": FORCED}
ADD, NOW = ("add", {"a": 1, "b": [2.5, "é"]}), ("now", {})
SIGNATURES = {"add": {"a": {"type": "integer"}, "b": {"type": "array"}}, "now": {}}
ADD_JSON = '{"a": 1, "b": [2.5, "é"]}'


def split(form, pieces, *, is_open=False):
    """Text with its thought, and calls with their arguments as values."""
    thoughts = ThoughtReading(is_open=is_open, is_apart=False)
    calls = CallReading(form=FORM[form], tools=SIGNATURES)
    splitter = AnswerReading(thoughts=thoughts, calls=calls).splitter()
    parts = [part for piece in pieces for part in splitter.push(piece)] + list(splitter.flush())
    assert all(parts)
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [(one.name, json.loads(one.arguments)) for one in parts if isinstance(one, Call)]


# Written as these templates write calls: Qwen 2.5 and 3, Llama 3.1 and 3.2, Mistral 7B v0.3 and
# Mistral Small 3.1, Devstral (tokenizer v11), DeepSeek R1 and V3, DeepSeek V3.1, LLaMA-Factory.
CALLS = {
    "qwen": ("hermes", f'<tool_call>\n{{"name": "add", "arguments": {ADD_JSON}}}\n</tool_call>'),
    "llama": ("llama", f'{{"name": "add", "parameters": {ADD_JSON}}}'),
    "llama-tag": ("llama", f'<|python_tag|>{{"name": "add", "parameters": {ADD_JSON}}}'),
    "mistral": (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "add", "arguments": {ADD_JSON}, "id": "abcdefghi"}}]',
    ),
    "mistral-v11": ("mistral", f"[TOOL_CALLS]add[ARGS]{ADD_JSON}"),
    "mistral-v13": ("mistral", f"[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{ADD_JSON}"),
    "deepseek-v3": (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        f"{ADD_JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.1": (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
        f"{ADD_JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "llama-factory": ("react", f"Action: add\nAction Input: {ADD_JSON}"),
    "glm-4.5": (
        "glm",
        "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
        '<arg_key>b</arg_key>\n<arg_value>[2.5, "é"]</arg_value>\n</tool_call>',
    ),
    "glm-4.7": (
        "glm",
        "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value>"
        '<arg_key>b</arg_key><arg_value>[2.5, "é"]</arg_value></tool_call>',
    ),
    "qwen3-coder": (
        "qwen-coder",
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        '<parameter=b>\n[2.5, "é"]\n</parameter>\n</function>\n</tool_call>',
    ),
    "deepseek-v3.2": (
        "dsml",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="add">\n'
        '<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="b" string="false">[2.5, "é"]</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    ),
    "deepseek-v4": (
        "dsml",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="add">\n'
        '<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="b" string="false">[2.5, "é"]</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    ),
    "forced": ("forced", f'{{"name": "add", "arguments": {ADD_JSON}}}'),
}
SEVERAL = {
    "qwen": (
        "hermes",
        f'<tool_call>\n{{"name": "add", "arguments": {ADD_JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    "qwen-cut": (
        "hermes",
        f'<tool_call>\n{{"name": "add", "arguments": {ADD_JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n',
    ),
    "llama": (
        "llama",
        f'{{"name": "add", "parameters": {ADD_JSON}}}; {{"name": "now", "parameters": {{}}}}',
    ),
    "mistral": (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "add", "arguments": {ADD_JSON}}}, '
        '{"name": "now", "arguments": {}}]',
    ),
    "mistral-v11": ("mistral", f"[TOOL_CALLS]add[ARGS]{ADD_JSON}[TOOL_CALLS]now[ARGS]{{}}"),
    "deepseek-v3": (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        f"{ADD_JSON}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n"
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "llama-factory": (
        "react",
        f"Action: add\nAction Input: {ADD_JSON}\nAction: now\nAction Input: {{}}",
    ),
    "glm-4.5": ("glm", CALLS["glm-4.5"][1] + "\n<tool_call>now\n</tool_call>"),
    "glm-4.5-cut": ("glm", CALLS["glm-4.5"][1] + "\n<tool_call>now\n"),
    "qwen3-coder": (
        "qwen-coder",
        CALLS["qwen3-coder"][1] + "\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    "deepseek-v3.2": (
        "dsml",
        CALLS["deepseek-v3.2"][1].replace(
            "</｜DSML｜function_calls>",
            '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        ),
    ),
}


@pytest.mark.parametrize(("form", "text"), CALLS.values(), ids=CALLS)
def test_a_call_is_taken_out(form, text):
    assert split(form, [text]) == ("", [ADD])
    assert split(form, list(text)) == ("", [ADD])


@pytest.mark.parametrize(("form", "text"), SEVERAL.values(), ids=SEVERAL)
def test_several_calls_stay_in_order(form, text):
    assert split(form, list(text)) == ("", [ADD, NOW])


@pytest.mark.parametrize(
    "form", [form for form in FORM if not FORM[form].opens_answer and FORM[form].closings]
)
def test_words_before_a_call_stay_and_space_between_goes(form):
    text = next(text for name, text in CALLS.values() if name == form)
    assert split(form, list(f" I will.\n\n{text}\n")) == (" I will.", [ADD])


def test_words_after_a_call_stay_where_a_call_has_an_end():
    _, text = CALLS["qwen"]
    assert split("hermes", list(f"{text}\n\nDone. ")) == ("Done. ", [ADD])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", " no calls\n"),
        ("hermes", '<tool_call>{"name": "sub", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call> x'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "argum'),
        ("hermes", "a\n <tool_call>add(1)</tool_call>\n<tool_cal"),
        ("hermes", '<tool_call>{"name": "now", "arguments": ' + '{"a": [' * 50_000),
        (
            "hermes",
            '<tool_call>{"name": "now", "arguments": {"a": ' + "1" * 5000 + "}}</tool_call>",
        ),
        ("llama", 'It is {"name": "add", "parameters": {}}'),
        ("llama", '{"name": "Ann", "parameters": {}}'),
        ("llama", '{"name": "add", "parameters": {}} or so'),
        ("llama", "<|python_tag|>print(1)"),
        ("mistral", '[TOOL_CALLS] {"name": "add", "arguments": {}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {}}] done'),
        ("mistral", "[TOOL_CALLS]"),
        ("glm", "<tool_call>add\n<arg_key>a</arg_key></tool_call>"),
        ("glm", "<tool_call>add\n<arg_value>a</arg_value></tool_call>"),
        ("glm", "<tool_call>sub</tool_call>"),
        ("qwen-coder", "<tool_call>\n<function=add>\n<parameter=a>1</function></tool_call>"),
        ("qwen-coder", "<tool_call>\n<function=add>\n1\n</function></tool_call>"),
        ("qwen-coder", "<tool_call></tool_call>"),
        (
            "dsml",
            '<｜DSML｜tool_calls><｜DSML｜invoke name="add">1</｜DSML｜invoke>'
            "</｜DSML｜tool_calls>",
        ),
        (
            "dsml",
            '<｜DSML｜tool_calls><｜DSML｜invoke name="add">'
            '<｜DSML｜parameter name="a" string="false">x</｜DSML｜parameter>'
            "</｜DSML｜invoke></｜DSML｜tool_calls>",
        ),
        ("deepseek", "<｜tool▁calls▁begin｜>add<｜tool▁calls▁end｜>"),
        ("react", "Action: none needed."),
        ("react", "Action: add\nAction Input: 3"),
    ],
)
def test_what_is_no_valid_call_stays_text(form, text):
    assert split(form, [text]) == (text, [])
    assert split(form, [text[i : i + 7] for i in range(0, len(text), 7)]) == (text, [])


def test_a_thought_has_no_calls_in_it():
    _, call = CALLS["qwen"]
    thought = f"<think>\n{call}\n</think>"
    assert split("hermes", list(f"{thought}\n\n{call}")) == (thought, [ADD])
    opened = thought.removeprefix("<think>")
    assert split("hermes", list(opened + call), is_open=True) == (opened, [ADD])
    assert split("llama", [thought + CALLS["llama"][1]]) == (thought, [ADD])


PIECES = st.lists(
    st.sampled_from(
        [
            "<tool_call>", "</tool_call>", "<tool_", "call>", "<", " ", "\n", "a", "<think>",
            "</think>", '{"name": "now", "arguments": {}}',
            '<tool_call>{"name": "now", "arguments": {}}</tool_call>',
        ]
    ),
    max_size=12,
)  # fmt: skip


@given(pieces=PIECES)
def test_parts_do_not_depend_on_how_the_text_was_cut(pieces):
    text = "".join(pieces)
    assert split("hermes", pieces) == split("hermes", [text]) == split("hermes", list(text))


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("within <tool_call></tool_call> XML tags:", "hermes"),
        ("<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", "glm"),
        ("<tool_call>\n<function=example_function_name>", "qwen-coder"),
        ("{%- set mark = '｜DSML｜' -%}", "dsml"),
        ("{{ '<|start|>assistant<|channel|>final<|message|>' }}", "harmony"),
        ("'[TOOL_CALLS] ['", "mistral"),
        ('\'Respond in the format {"name": function name, "parameters": dictionary', "llama"),
        ("'<|python_tag|>' + tool_call.name", "llama"),
        ("'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'", "deepseek"),
        ("Action Input: the input", "react"),
        ("{{ tools | tojson }}", None),
    ],
)
def test_the_template_says_which_format(template, form):
    found = format_of(template)
    assert (found and found.name) == form


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("glm", "<tool_call>add<arg_key>" + "<arg_key>" * 30_000 + "</tool_call>"),
        ("glm", "<tool_call>add<arg_key>a</arg_key>" + " " * 200_000 + "</tool_call>"),
        ("qwen-coder", "<tool_call><function=add>" + " " * 200_000 + "</tool_call>"),
        ("qwen-coder", "<tool_call>" + "<function=add>" * 30_000 + "</tool_call>"),
        ("dsml", '<｜DSML｜tool_calls><｜DSML｜invoke name="add">' + "\n" * 200_000),
    ],
)
def test_what_never_becomes_a_call_is_read_in_the_time_its_length_takes(form, text):
    start = time.process_time()
    assert split(form, [text]) == (text, [])
    assert time.process_time() - start < 1.0
