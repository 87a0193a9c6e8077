"""What the official client gets from a server whose engine repeats the prompt."""

import json
import time
import urllib.request

import pytest
from openai import BadRequestError, NotFoundError

USER = [{"role": "user", "content": "abc"}]


def _chat(client, **fields):
    fields = {"model": "echo", "messages": USER, "max_tokens": 7} | fields
    return client.chat.completions.create(**fields)


def _complete(client, **fields):
    return client.completions.create(**{"model": "echo", "prompt": "abc", "max_tokens": 7} | fields)


def test_a_chat_answer_with_its_counts(client):
    answer = _chat(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "abcabca")
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 7)
    assert answer.usage.total_tokens == 10
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60


def test_the_template_is_told_what_the_request_says(client):
    answer = _chat(client, extra_body={"chat_template_kwargs": {"end": "|"}})
    assert answer.choices[0].message.content == "abc|abc"


def test_a_stream_is_the_same_text_in_pieces(client):
    options = {"include_usage": True}
    chunks = list(_chat(client, stream=True, stream_options=options, max_completion_tokens=7,
                        max_tokens=None))  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "abcabca"
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == [
        "length"
    ]
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 7)
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_wire_is_server_sent_events_that_end_with_done(echo):
    body = {"model": "echo", "messages": USER, "max_tokens": 2, "stream": True}
    request = urllib.request.Request(
        f"{echo.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json; charset=utf-8"},
    )
    with urllib.request.urlopen(request) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


@pytest.mark.parametrize(("stop", "text"), [("ca", "ab"), (["x", "bcab"], "a"), ("a", "")])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_across_tokens(client, stop, text, stream):
    # Every token is one character.
    answer = _chat(client, stop=stop, max_tokens=50, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        found = "".join(chunk.delta.content or "" for chunk in chunks)
        assert (found, chunks[-1].finish_reason) == (text, "stop")
    else:
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
            text,
            "stop",
        )


def test_n_answers_stand_in_order(client):
    answer = _chat(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["abcabca"] * 3
    assert answer.usage.completion_tokens == 21
    # Each prompt is counted once, however many answers it gets.
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_n_answers_are_streamed_side_by_side(client):
    texts = {0: "", 1: "", 2: ""}
    for chunk in _chat(client, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert set(texts.values()) == {"abcabca"}


def test_chat_logprobs_say_token_bytes_and_rivals(client):
    # The engine's rule: token i has -i, its rival is the next character with -9.
    answer = _chat(client, logprobs=True, top_logprobs=2, max_tokens=2)
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("a", [97], -1.0)
    assert [(one.token, one.logprob) for one in second.top_logprobs] == [("b", -2.0), ("c", -9.0)]


def test_streamed_logprobs_are_those_of_the_whole(client):
    content = []
    for chunk in _chat(client, logprobs=True, stream=True):
        found = chunk.choices[0].logprobs
        content += found.content if found else []
    assert [token.token for token in content] == list("abcabca")
    assert [token.logprob for token in content] == [-float(i) for i in range(1, 8)]


def test_completion_logprobs_have_their_older_shape(client):
    found = _complete(client, logprobs=1, max_tokens=2).choices[0].logprobs
    assert found.tokens == ["a", "b"]
    assert found.token_logprobs == [-1.0, -2.0]
    assert found.top_logprobs == [{"a": -1.0}, {"b": -2.0}]
    assert found.text_offset == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_many_prompts_and_echo(client, stream):
    answer = _complete(client, prompt=["ab", "xyz"], n=2, echo=True, max_tokens=3, stream=stream)
    texts = {}
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: "ababa", 1: "ababa", 2: "xyzxyz", 3: "xyzxyz"}


def test_an_echo_alone_has_no_answer(client):
    answer = _complete(client, echo=True, max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abc", "length")
    assert answer.usage.completion_tokens == 0


def test_an_engine_that_tells_nothing_of_prompts_says_so(client):
    with pytest.raises(BadRequestError, match="echo: this engine tells no probabilities"):
        _complete(client, echo=True, logprobs=1)


def test_a_prompt_of_tokens(client):
    assert _complete(client, prompt=[104, 105], max_tokens=3).choices[0].text == "hih"


def test_completions_default_to_sixteen_tokens(client):
    assert _complete(client, max_tokens=None).usage.completion_tokens == 16


def test_an_answer_fills_the_context_and_no_more(client):
    answer = _complete(client, prompt="ab", max_tokens=100_000)
    assert answer.usage.total_tokens == 4096


def test_models_are_listed_and_found_by_name(client):
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").owned_by == "llm-infer"
    with pytest.raises(NotFoundError, match="this server has 'echo'"):
        client.models.retrieve("gpt")


def test_metrics_count_requests_and_tokens(client, echo):
    def value(name):
        with urllib.request.urlopen(f"{echo.url}/metrics") as response:
            for line in response.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[-1])
        return 0.0

    names = (
        'llm_infer_requests_total{route="/v1/completions",status="200"}',
        "llm_infer_prompt_tokens_total",
        "llm_infer_new_tokens_total",
        "llm_infer_time_to_first_token_seconds_count",
    )
    before = [value(name) for name in names]
    _complete(client)
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == [1, 3, 7, 1]
    assert value("llm_infer_open_answers") == 0


def test_an_answer_can_be_sent_back_with_every_field_it_has(client):
    # With annotations, audio, function_call and tool_calls, all null.
    said = _chat(client).choices[0].message.model_dump()
    assert said.keys() >= {"annotations", "audio", "function_call"}
    answer = _chat(client, messages=[*USER, said, {"role": "user", "content": "de"}])
    assert answer.choices[0].message.content == "dededed"
