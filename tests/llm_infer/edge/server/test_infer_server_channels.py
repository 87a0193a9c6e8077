"""gpt-oss' channels through the official client, from a server that says what it is asked."""

import json

import pytest

from echo_client import echo_client, say
from echo_server import END

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
THINKS = "<|channel|>analysis<|message|>2 and 2?<|end|><|start|>assistant"
CALLS = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 2}'


@pytest.fixture(scope="module")
def client():
    with echo_client("--template", "<|start|>assistant<|channel|>") as client:
        yield client


def test_a_thought_is_told_beside_the_words(client):
    (choice,) = say(client, THINKS + "<|channel|>final<|message|>4").choices
    assert (choice.message.content, choice.message.reasoning_content) == ("4", "2 and 2?")
    assert choice.finish_reason == "stop"


def test_a_call_is_a_field_and_can_be_sent_back_with_its_thought(client):
    (choice,) = say(client, THINKS + CALLS, tools=TOOLS).choices
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 2})
    result = {"role": "tool", "tool_call_id": call.id, "content": f"ok{END}"}
    again = [{"role": "user", "content": "add"}, choice.message, result]
    answer = client.chat.completions.create(model="echo", messages=again, tools=TOOLS)
    assert answer.choices[0].message.content == "ok"


def test_a_stream_brings_thoughts_words_and_calls_as_deltas(client):
    thought = words = ""
    calls = []
    preamble = "<|channel|>commentary<|message|>I add.<|end|><|start|>assistant"
    for chunk in say(client, THINKS + preamble + CALLS, tools=TOOLS, stream=True):
        (choice,) = chunk.choices
        thought += getattr(choice.delta, "reasoning_content", None) or ""
        words += choice.delta.content or ""
        calls += choice.delta.tool_calls or ()
    assert (thought, words) == ("2 and 2?", "I add.")
    assert [(one.index, one.function.name) for one in calls] == [(0, "add")]
    assert choice.finish_reason == "tool_calls"
