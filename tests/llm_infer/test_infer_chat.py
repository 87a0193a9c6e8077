import pytest

from llm_infer.chat import Conversation, split_command, unknown_command


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
