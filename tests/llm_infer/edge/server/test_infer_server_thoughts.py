"""Thoughts of answers through the official client, from a server that says what it is asked.

What is expected is what vLLM's server with a reasoning parser tells (docs, "Reasoning Outputs").
"""

import json

import pytest
from click.testing import CliRunner

from echo_client import echo_client, say
from echo_server import END
from llm_infer.cli import main

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>'
THINKS = "<think>\n2 and 2?\n</think>\n\n"


@pytest.fixture(scope="module")
def in_content():
    """A server that leaves thoughts where they are."""
    with echo_client("--thoughts", "content") as client:
        yield client


@pytest.fixture(scope="module")
def magistral():
    with echo_client("--template", "[THINK][/THINK][TOOL_CALLS]") as client:
        yield client


def _told(message):
    return getattr(message, "reasoning_content", None), message.content


def _streamed(client, text, **fields):
    thought = words = ""
    calls, finish = [], None
    for chunk in say(client, text, stream=True, **fields):
        (choice,) = chunk.choices
        # No piece of the answer before the end of the thought.
        new = getattr(choice.delta, "reasoning_content", None) or ""
        assert not (new and words)
        thought, words = thought + new, words + (choice.delta.content or "")
        calls += choice.delta.tool_calls or ()
        finish = choice.finish_reason or finish
    return thought, words, calls, finish


def test_a_thought_is_a_field_beside_the_words(client):
    answer = say(client, THINKS + "4")
    (choice,) = answer.choices
    assert _told(choice.message) == ("2 and 2?", "4")
    assert choice.finish_reason == "stop"
    # A token of this model is a character: all of them but the white space after the mark, and 4.
    used = len("<think>\n2 and 2?\n</think>")
    assert answer.usage.completion_tokens == len(THINKS + "4")
    assert answer.usage.completion_tokens_details.reasoning_tokens == used - len("<think")


def test_a_stream_brings_the_thought_as_it_comes(client):
    assert _streamed(client, THINKS + "4") == ("2 and 2?", "4", [], "stop")
    pieces = [
        getattr(chunk.choices[0].delta, "reasoning_content", None)
        for chunk in say(client, THINKS + "4", stream=True)
    ]
    assert len([piece for piece in pieces if piece]) > 1


def test_an_answer_without_a_thought_is_as_it_was(client):
    answer = say(client, " 4 <think>no</think>")
    assert _told(answer.choices[0].message) == (None, " 4 <think>no</think>")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_thought_that_is_cut_leaves_no_words(client):
    (choice,) = say(client, THINKS, max_tokens=12).choices
    assert _told(choice.message) == ("2 an", "")
    assert choice.finish_reason == "length"


def test_a_prompt_may_open_the_thought(client):
    """As those of DeepSeek R1 and of Qwen3's thinking models do; the echo repeats it at the end."""
    kwargs = {"extra_body": {"chat_template_kwargs": {"end": "</think>4<think>\n"}}}
    messages = [{"role": "user", "content": "2 and 2?"}]
    answer = client.chat.completions.create(
        model="echo", messages=messages, max_tokens=len("2 and 2?</think>4"), **kwargs
    )
    assert _told(answer.choices[0].message) == ("2 and 2?", "4")


def test_a_call_after_a_thought_is_a_call_and_one_within_is_none(client):
    text = f"<think>I {CALL}</think>Now:\n{CALL}"
    (choice,) = say(client, text, tools=TOOLS).choices
    assert _told(choice.message) == (f"I {CALL}", "Now:")
    assert [one.function.name for one in choice.message.tool_calls] == ["add"]
    assert choice.finish_reason == "tool_calls"
    thought, words, calls, finish = _streamed(client, text, tools=TOOLS)
    assert (thought, words, finish) == (f"I {CALL}", "Now:", "tool_calls")
    assert [json.loads(one.function.arguments) for one in calls] == [{"a": 2}]


def test_a_stop_string_ends_a_thought_too(client):
    """It is looked for in what the model writes, as vLLM does."""
    (choice,) = say(client, THINKS + "4", stop=[" and"]).choices
    assert _told(choice.message) == ("2", "")
    assert choice.finish_reason == "stop"
    (choice,) = say(client, THINKS + "4, or 5", stop=[", or"]).choices
    assert _told(choice.message) == ("2 and 2?", "4")


def test_probabilities_are_told_of_all_tokens(client):
    (choice,) = say(client, THINKS + "4", logprobs=True).choices
    assert "".join(one.token for one in choice.logprobs.content) == THINKS + "4"


def test_each_of_several_answers_has_its_thought(client):
    for choice in say(client, THINKS + "4", n=3).choices:
        assert _told(choice.message) == ("2 and 2?", "4")


def test_a_thought_stays_in_content_where_that_is_wanted(client, in_content):
    apart = {"extra_body": {"separate_reasoning": True}}
    whole = {"extra_body": {"separate_reasoning": False}}
    assert _told(say(client, THINKS + "4", **whole).choices[0].message) == (None, THINKS + "4")
    assert _told(say(in_content, THINKS + "4").choices[0].message) == (None, THINKS + "4")
    found = say(in_content, THINKS + "4", **apart).choices[0].message
    assert _told(found) == ("2 and 2?", "4")
    # What looks like a call within it is none there either.
    (choice,) = say(in_content, f"<think>{CALL}</think>{CALL}", tools=TOOLS).choices
    assert _told(choice.message) == (None, f"<think>{CALL}</think>")
    assert len(choice.message.tool_calls) == 1


def test_the_marks_are_those_of_the_template(magistral):
    (choice,) = say(magistral, "[THINK]hm[/THINK]yes").choices
    assert _told(choice.message) == ("hm", "yes")
    text = '[THINK]hm[/THINK]yes[TOOL_CALLS]add[ARGS]{"a": 2}'
    (choice,) = say(magistral, text, tools=TOOLS).choices
    assert _told(choice.message) == ("hm", "yes")
    assert len(choice.message.tool_calls) == 1
    (choice,) = say(magistral, "<think>hm</think>yes").choices
    assert _told(choice.message) == (None, "<think>hm</think>yes")


def test_answers_can_be_sent_back_with_their_thoughts(client):
    message = say(client, THINKS + "4").choices[0].message
    newer = {"role": "assistant", "content": "4", "reasoning": "2 and 2?"}
    for said in (message, newer):
        again = [{"role": "user", "content": "?"}, said, {"role": "user", "content": "ok" + END}]
        answer = client.chat.completions.create(model="echo", messages=again)
        assert answer.choices[0].message.content == "ok"


@pytest.mark.parametrize("thoughts", ["apart", "within"])
def test_chat_shows_the_thoughts_that_a_server_tells(echo, in_content, thoughts):
    url = f"{echo.url}/v1" if thoughts == "apart" else str(in_content.base_url)
    text = "<think>hm</think>yes"
    command = ["chat", "echo", "--engine", f"openai:{url}", "--max-new-tokens", str(len(text))]
    for options, shown in (((), "hm\n\nyes\n"), (("--hide-thinking",), "yes\n")):
        result = CliRunner().invoke(main, [*command, *options], input=text + "\n")
        assert (result.exit_code, result.stdout) == (0, shown)
