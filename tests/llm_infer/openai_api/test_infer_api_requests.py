import json

import pytest

from llm_infer.openai_api.errors import ApiError
from llm_infer.openai_api.jobs import jobs
from llm_infer.openai_api.parsing import parse
from llm_infer.openai_api.requests import ChatRequest, CompletionRequest

USER = {"role": "user", "content": "hi"}


def _chat(**fields):
    return parse(ChatRequest, json.dumps({"model": "m", "messages": [USER]} | fields).encode())


def _completion(**fields):
    return parse(CompletionRequest, json.dumps({"model": "m", "prompt": "a"} | fields).encode())


def _jobs(request, prompts=((1, 2),), **facts):
    facts = {"context_length": 10, "vocab_size": 100, "seed": 7, "param": "prompt"} | facts
    return jobs(request, prompts, **facts)


def called(arguments):
    return {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}


CALL = {"role": "assistant", "content": "", "tool_calls": [called('{"a": 1}')]}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"temperature": 2.1}, "temperature", "found 2.1, want less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "found '1', want number"),
        ({"top_p": 0}, "top_p", "found 0, want greater than 0"),
        ({"n": 0}, "n", "found 0, want greater than or equal to 1"),
        ({"n": 10**9}, "n", "want less than or equal to 128"),
        ({"n": True}, "n", "found True, want integer"),
        ({"max_tokens": 0}, "max_tokens", "found 0"),
        ({"seed": 1 << 64}, "seed", "want less than 9223372036854775808"),
        ({"stop": ""}, "stop", "found '', want at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 items"),
        ({"stop": ["a", 3]}, "stop.1", "found 3, want string"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3", "found 101"),
        ({"presence_penalty": -3}, "presence_penalty", "found -3"),
        ({"frequency_penalty": 3}, "frequency_penalty", "found 3"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "found 21"),
        ({"top_logprobs": 2}, "top_logprobs", "only with logprobs: true"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream: true"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "the older name"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "found 'xml', want 'text'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "missing"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "want 'system'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "found None"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0.content.0.type",
            "found 'image_url', want 'text'",
        ),
        ({"max_token": 3}, "max_token", "unknown field; did you mean max_tokens?"),
        ({"stream": True, "stream_options": {"use": 1}}, "stream_options.use", "unknown field"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools.0", "want an object with a name"),
        ({"tools": [{"type": "web"}]}, "tools.0", "found 'web', want 'function'"),
        ({"messages": [{**CALL, "content": None, "role": "user"}]}, "messages.0.content", "None"),
        ({"messages": [{**CALL, "role": "user"}]}, "messages.0", "only an assistant"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "messages.0", "tool_call_id: what"),
        (
            {"messages": [{**CALL, "tool_calls": [called("[1]")]}]},
            "messages.0",
            "tool_calls.0.function.arguments: found '[1]', want a JSON object",
        ),
        ({"tool_choice": "required"}, "tool_choice", "only with tools"),
        (
            {"messages": [{**CALL, "tool_calls": [called("[" * 100_000)]}]},
            "messages.0",
            "want a JSON object",
        ),
    ],
)
def test_a_bad_field_is_named_with_what_was_found_and_wanted(fields, param, said):
    with pytest.raises(ApiError) as caught:
        _chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(f"{param}")
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', "not JSON"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}', "not JSON"),
        (b'{"model": "m", "messages": ' + b"[" * 100_000, "not JSON"),
        (b"[]", "the body: found [], want an object"),
        (b"{}", "model: missing"),
        (b'{"model": "m", "messages": [], "temperature": NaN}', "found nan, want a finite"),
    ],
)
def test_what_is_no_request_is_refused(body, said):
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body)
    assert caught.value.status == 400
    assert said in caught.value.message


def test_bookkeeping_fields_and_unset_features_are_let_through():
    _chat(user="u", metadata={"a": "b"}, store=False, tools=[], tool_choice="none", functions=None)


def test_parts_of_a_message_are_joined_and_developer_is_the_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = _chat(messages=[{"role": "developer", "content": parts}, USER])
    assert request.messages[0].plain() == {"role": "system", "content": "ab"}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_is_text_or_tokens_one_or_many(prompt, prompts):
    assert _completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt.0"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        (
            {"echo": True, "logprobs": 1, "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_what_completions_cannot_do_is_refused_by_name(fields, param):
    with pytest.raises(ApiError) as caught:
        _completion(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_every_answer_has_its_own_seed_and_all_settings():
    request = _completion(n=2, seed=5, temperature=0.5, top_k=-1, min_p=0.1, stop="s",
                          logit_bias={"3": -4}, logprobs=2, max_tokens=3)  # fmt: skip
    found = _jobs(request, [[1], [2]])
    assert [job.sampling.seed for job in found] == [5, 6, 7, 8]
    assert [job.prompt for job in found] == [[1], [1], [2], [2]]
    one = found[0].sampling
    assert (one.temperature, one.top_k, one.min_p, one.stop) == (0.5, 0, 0.1, ("s",))
    assert (one.logit_bias, one.logprobs, one.max_new_tokens) == (((3, -4.0),), 2, 3)


def test_defaults_are_those_of_the_api():
    # https://platform.openai.com/docs/api-reference: temperature 1, top_p 1, max_tokens 16.
    (text,) = _jobs(_completion(), context_length=100)
    (chat,) = _jobs(_chat(), context_length=100)
    assert (text.sampling.temperature, text.sampling.top_p) == (1.0, 1.0)
    assert (text.sampling.max_new_tokens, chat.sampling.max_new_tokens) == (16, 98)
    assert text.sampling.seed == 7


@pytest.mark.parametrize(
    ("prompt", "fields", "said"),
    [
        ([], {}, "the prompt is empty"),
        (list(range(10)), {}, "has 10 tokens; the model's context of 10"),
        ([100], {}, "found token 100, want 0 to 99"),
        ([-1], {}, "found token -1"),
        ([1], {"logit_bias": {"100": 1}}, "logit_bias: found '100', want tokens from 0 to 99"),
        ([1], {"logit_bias": {"x": 1}}, "logit_bias: found 'x'"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(prompt, fields, said):
    with pytest.raises(ApiError) as caught:
        _jobs(_completion(**fields), [prompt])
    assert caught.value.status == 400
    assert said in caught.value.message


def test_calls_of_tools_and_their_results_come_as_chat_templates_want_them():
    answer = {"role": "tool", "tool_call_id": "1", "content": "3"}
    tool = {"function": {"strict": True, "name": "add"}, "type": "function"}
    request = _chat(messages=[USER, CALL | {"content": None}, answer], tools=[tool])
    _, call, result = [message.plain() for message in request.messages]
    function = {"name": "add", "arguments": {"a": 1}}
    calls = [{"id": "1", "type": "function", "function": function}]
    assert call == {"role": "assistant", "tool_calls": calls}
    assert result == answer
    assert json.dumps(request.tools_wanted) == json.dumps([tool])
    assert _chat(tools=[tool], tool_choice="none").tools_wanted is None
