"""Calls of tools through the official client: from a server that says what it is asked, and held
to a schema by a tiny random model.
"""

import json

import pytest
from openai import BadRequestError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

from echo_server import END
from server_process import LLM_INFER, served

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def _ask(client, text, **fields):
    """The answer of a model that says this text."""
    fields = {"tools": TOOLS, "max_tokens": 500} | fields
    messages = [{"role": "user", "content": text + END}]
    return client.chat.completions.create(model="echo", messages=messages, **fields)


def _called(message):
    return [(one.type, one.function.name, one.function.arguments) for one in message.tool_calls]


def test_a_call_is_a_field_of_the_message(client):
    (choice,) = _ask(client, CALL).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert _called(choice.message) == [("function", "add", '{"a": 1, "b": 2}')]
    # What Mistral's templates take: nine letters or digits.
    assert len(choice.message.tool_calls[0].id) == 9
    assert choice.message.tool_calls[0].id.isalnum()


def test_words_and_several_calls_stand_beside_each_other(client):
    (choice,) = _ask(client, f"Adding.\n{CALL}\n{CALL}").choices
    assert choice.message.content == "Adding."
    assert len(choice.message.tool_calls) == 2
    assert len({one.id for one in choice.message.tool_calls}) == 2
    (choice,) = _ask(client, f"{CALL}\n{CALL}", parallel_tool_calls=False).choices
    assert (len(choice.message.tool_calls), choice.finish_reason) == (1, "tool_calls")


def test_a_stream_brings_calls_by_their_index(client):
    chunks = [one.choices[0] for one in _ask(client, f"Adding.\n{CALL}{CALL}", stream=True)]
    assert "".join(one.delta.content or "" for one in chunks) == "Adding."
    deltas = [call for one in chunks for call in one.delta.tool_calls or ()]
    assert [(one.index, one.type, one.function.name) for one in deltas] == [
        (0, "function", "add"),
        (1, "function", "add"),
    ]
    assert [json.loads(one.function.arguments) for one in deltas] == [{"a": 1, "b": 2}] * 2
    assert chunks[-1].finish_reason == "tool_calls"


def test_the_clients_own_reader_of_streams_puts_them_together(client):
    messages = [{"role": "user", "content": f"Adding.\n{CALL}{CALL}{END}"}]
    with client.chat.completions.stream(model="echo", messages=messages, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    assert (message.content, len(message.tool_calls)) == ("Adding.", 2)


def test_an_answer_can_be_sent_back_as_it_came(client):
    (choice,) = _ask(client, CALL).choices
    called = choice.message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": f"3{END}"}
    again = [{"role": "user", "content": "add"}, called, result]
    answer = client.chat.completions.create(model="echo", messages=again, tools=TOOLS)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("3", "stop")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (CALL, {"tool_choice": "none"}),
        (CALL, {"tools": None}),
        (CALL.replace("add", "sub"), {}),
        (CALL.replace("}}", "}"), {}),
    ],
)
def test_text_that_is_no_call_stays_text(client, text, fields):
    (choice,) = _ask(client, text, **fields).choices
    assert (choice.message.content, choice.finish_reason) == (text, "stop")
    assert choice.message.tool_calls is None


def test_an_answer_that_ran_out_of_tokens_says_so(client):
    (choice,) = _ask(client, CALL + " and more", max_tokens=len(CALL) + 4).choices
    assert (len(choice.message.tool_calls), choice.finish_reason) == (1, "length")
    (choice,) = _ask(client, CALL, max_tokens=len(CALL) - 1).choices
    assert (choice.message.content, choice.finish_reason) == (CALL[:-1], "length")


def test_every_token_of_a_call_has_its_probability(client):
    (whole,) = _ask(client, f"Hm. {CALL}", logprobs=True).choices
    assert "".join(one.token for one in whole.logprobs.content) == f"Hm. {CALL}"
    streamed = [one.choices[0].logprobs for one in _ask(client, CALL, logprobs=True, stream=True)]
    assert "".join(one.token for part in streamed if part for one in part.content) == CALL


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tool_choice": "must"}, "tool_choice: found 'must', want 'none', 'auto' or 'required'"),
        ({"tool_choice": "required", "tools": None}, "tool_choice: only with tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice.function.name: found 'sub', tools has add",
        ),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name: miss"),
        ({"tool_choice": "required"}, "tool_choice: this engine cannot hold answers to a schema"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format: an answer is either",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]},
         "tools.0.function.parameters: want a JSON schema"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"$defs": 3}}}],
          "tool_choice": "required"}, r"tools.0.function.parameters.\$defs: want an object"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_kept_are_refused(client, fields, said):
    with pytest.raises(BadRequestError, match=said):
        _ask(client, "x", **fields)


class _Point(BaseModel):
    x: bool


class _Move(BaseModel):
    to: _Point
    fast: bool


@pytest.fixture(scope="module")
def guided(models, tmp_path_factory):
    template = tmp_path_factory.mktemp("tools") / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{# tools #}")
    command = (LLM_INFER, "serve", models["qwen3"], "--port", "0", "--device", "cpu")
    options = ("--dtype", "float32", "--template", template, "--name", "tiny")
    with (
        served([*map(str, (*command, *options))]) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("named", [False, True])
def test_a_call_that_must_be_is_made_whatever_the_model_would_say(guided, named):
    """The schema of pydantic's model has a definition of its own; a random model, hot."""
    tools = [pydantic_function_tool(_Move, name="go")]
    choice = {"type": "function", "function": {"name": "go"}} if named else "required"
    answer = guided.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], tools=tools,
        tool_choice=choice, temperature=2, n=2, seed=1, max_tokens=63,
    )  # fmt: skip
    for one in answer.choices:
        assert (one.finish_reason, one.message.content) == ("tool_calls", None)
        (call,) = one.message.tool_calls
        assert call.function.name == "go"
        _Move.model_validate_json(call.function.arguments)
