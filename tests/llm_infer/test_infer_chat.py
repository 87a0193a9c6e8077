import json
import re

import pytest

from llm_infer.chat import Conversation, split_command, unknown_command
from llm_infer.errors import InferError


def _said(conversation, question):
    return [(m["role"], m["content"]) for m in conversation.messages(question)]


def test_the_model_sees_system_history_and_question_in_order():
    conversation = Conversation(system="Be brief.", max_turns=2).answered("a", "b")
    assert _said(conversation, "c") == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]


def test_the_oldest_pair_goes_first():
    conversation = Conversation(system=None, max_turns=2)
    for number in range(4):
        conversation = conversation.answered(f"q{number}", f"a{number}")
    assert conversation.turns == (("q2", "a2"), ("q3", "a3"))


def test_no_history_at_all():
    conversation = Conversation(system=None, max_turns=0).answered("a", "b")
    assert _said(conversation, "c") == [("user", "c")]


def test_clearing_keeps_the_system_prompt():
    conversation = Conversation(system="s", max_turns=2).answered("a", "b").cleared()
    assert _said(conversation, "c") == [("system", "s"), ("user", "c")]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/quit", ("/quit", "")),
        ("/system  You are a cat. ", ("/system", "You are a cat.")),
        ("what is 1/2?", None),
    ],
)
def test_commands_start_with_a_slash(line, command):
    assert split_command(line) == command


def test_an_unknown_command_gets_the_nearest():
    assert unknown_command("/claer") == "no command /claer: did you mean /clear?"
    assert "there are /clear, /system" in unknown_command("/xyz")


def test_a_conversation_is_saved_as_messages_and_comes_back():
    conversation = Conversation(system="s", max_turns=2).answered("é", "b\n").answered("c", "d")
    saved = conversation.dumped()
    assert json.loads(saved)["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "é"},
        {"role": "assistant", "content": "b\n"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    other = Conversation(system="other", max_turns=2)
    assert other.loaded(saved, where="x") == conversation
    assert Conversation(system=None, max_turns=1).loaded(saved, where="x").turns == (("c", "d"),)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "assistant", "content": "a"}], "message 1 is of 'assistant', want 'user'"),
        (
            [{"role": "system", "content": "s"}, {"role": "system", "content": "a"}],
            "message 2 is of 'system', want 'user'",
        ),
        ([{"role": "user", "content": "a"}], "the last question has no answer"),
        ([{"role": "user"}], "message 1: want texts under 'role' and 'content'"),
        ([3], "message 1: want texts"),
        (3, "want a JSON object with a list under 'messages'"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, said):
    text = json.dumps({"messages": messages})
    with pytest.raises(InferError, match=f"f.json: {re.escape(said)}"):
        Conversation(system=None, max_turns=2).loaded(text, where="f.json")


def test_what_is_no_json_is_refused():
    with pytest.raises(InferError, match=r"f.json: not JSON"):
        Conversation(system=None, max_turns=2).loaded("{", where="f.json")
