"""Answers in gpt-oss' channels; texts after https://cookbook.openai.com/articles/openai-harmony."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_infer.tools.calls import Call
from llm_infer.tools.harmony import HarmonySplitter, Thought

PROMPT_END = "<|start|>user<|message|>hi<|end|><|start|>assistant"


def split(pieces, *, prompt_end=PROMPT_END):
    """Thought, words, and calls with their arguments as values."""
    splitter = HarmonySplitter({"add": {}, "now": {}}, prompt_end=prompt_end)
    parts = [part for piece in pieces for part in splitter.push(piece)] + list(splitter.flush())
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    words = "".join(part for part in parts if isinstance(part, str))
    calls = [(one.name, json.loads(one.arguments)) for one in parts if isinstance(one, Call)]
    return thought, words, calls


THINKS = "<|channel|>analysis<|message|>2 and 2?<|end|><|start|>assistant"
CASES = {
    "words": ("<|channel|>final<|message|>Hello", ("", "Hello", [])),
    "ended": ("<|channel|>final<|message|>Hello<|return|>", ("", "Hello", [])),
    "thought": (THINKS + "<|channel|>final<|message|>4", ("2 and 2?", "4", [])),
    "call": (
        THINKS
        + '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 2}<|call|>',
        ("2 and 2?", "", [("add", {"a": 2})]),
    ),
    "call-of-older-form": (
        ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}',
        ("", "", [("add", {"a": 2})]),
    ),
    "call-in-analysis": (
        "<|channel|>analysis to=functions.now code<|message|>{}",
        ("", "", [("now", {})]),
    ),
    "preamble": (
        THINKS
        + "<|channel|>commentary<|message|>I add.<|end|><|start|>assistant"
        + "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>",
        ("2 and 2?", "I add.", [("add", {})]),
    ),
    "unknown-function": (
        "<|channel|>commentary to=functions.sub <|constrain|>json<|message|>{}",
        ("", "{}", []),
    ),
    "no-object": ("<|channel|>commentary to=functions.add<|message|>[1]<|call|>", ("", "[1]", [])),
    "cut-call": ('<|channel|>commentary to=functions.add<|message|>{"a"', ("", '{"a"', [])),
    "cut-header": (THINKS + "<|channel|>fin", ("2 and 2?", "", [])),
    "cut-mark": ("<|channel|>final<|message|>a <|en", ("", "a <|en", [])),
    "no-channels": ("Hello <there>", ("", "Hello <there>", [])),
    "no-end-of-thought": (
        "<|channel|>analysis<|message|>Hm<|start|>assistant<|channel|>final<|message|>x",
        ("Hm", "x", []),
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_each_channel_is_what_it_says(text, expected):
    assert split([text]) == expected
    assert split(list(text)) == expected


def test_a_prompt_may_begin_the_message():
    end = PROMPT_END + "<|channel|>final<|message|>"
    assert split(["Hello"], prompt_end=end) == ("", "Hello", [])
    begun = PROMPT_END + "<|channel|>analysis<|message|>"
    text = "Hm<|end|><|start|>assistant<|channel|>final<|message|>x"
    assert split([text], prompt_end=begun) == ("Hm", "x", [])
    assert split(["nalysis<|message|>Hm"], prompt_end=PROMPT_END + "<|channel|>a")[0] == "Hm"


def test_words_and_thoughts_come_as_they_are_written():
    splitter = HarmonySplitter({}, prompt_end=PROMPT_END)
    assert list(splitter.push("<|channel|>analysis<|message|>one")) == [Thought("one")]
    assert list(splitter.push(" two<|e")) == [Thought(" two")]
    assert list(splitter.push("nd|><|start|>assistant<|channel|>final<|message|>3")) == ["3"]


PIECES = st.lists(
    st.sampled_from(
        ["<|start|>", "assistant", "<|channel|>", "analysis", "final", "commentary", "<|message|>",
         " to=functions.now", " ", "{}", "<|end|>", "<|call|>", "a", "<|", "|>", "<|constrain|>"]
    ),
    max_size=14,
)  # fmt: skip


@given(pieces=PIECES)
def test_parts_do_not_depend_on_how_the_text_was_cut(pieces):
    text = "".join(pieces)
    assert split(pieces) == split([text]) == split(list(text))
