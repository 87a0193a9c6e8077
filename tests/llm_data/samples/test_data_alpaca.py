"""Alpaca records, by LLaMA-Factory's and MindSpeed-LLM's documented rules; values by hand."""

import pytest

from llm_data.config import Task
from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, Preference
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.columns import Format
from llm_data.samples.spec import SampleSpec


def _read(record, task=Task.SFT, **map_keys):
    return SampleSpec(task=task, format=Format.ALPACA, map_keys=map_keys).build()(record)


def _refusal(record, task=Task.SFT, **map_keys) -> RecordRefusedError:
    with pytest.raises(RecordRefusedError) as caught:
        _read(record, task, **map_keys)
    return caught.value


def _turns(*pairs) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=text) for role, text in pairs)


def test_every_column_has_its_place():
    record = {
        "instruction": "Translate.",
        "input": "Guten Tag",
        "output": "Good day",
        "system": "You translate.",
        "history": [["Hello?", "Hallo?"], ["Yes", "Ja"]],
        "tools": '[{"name": "look_up"}]',
    }
    assert _read(record) == Conversation(
        messages=_turns(
            ("system", "You translate."),
            ("user", "Hello?"),
            ("assistant", "Hallo?"),
            ("user", "Yes"),
            ("assistant", "Ja"),
            ("user", "Translate.\nGuten Tag"),
            ("assistant", "Good day"),
        ),
        tools=({"type": "function", "function": {"name": "look_up"}},),
    )


@pytest.mark.parametrize("absent", [{}, {"input": None}, {"input": ""}])
def test_without_an_input_the_prompt_is_the_instruction_alone(absent):
    found = _read({"instruction": "Sing.", "output": "La", **absent, "history": None})
    assert found.messages == _turns(("user", "Sing."), ("assistant", "La"))


def test_map_keys_rename_and_an_empty_name_switches_off():
    # orca_dpo's columns, the example of MindSpeed-LLM's documentation.
    record = {
        "system": "Be brief.",
        "question": "Why?",
        "input": "x",
        "chosen": "So",
        "rejected": "No",
    }
    found = _read(record, Task.PAIRWISE, prompt="question", query="", system="system")
    assert found == Preference(
        prompt=Conversation(messages=_turns(("system", "Be brief."), ("user", "Why?"))),
        chosen=Message(role="assistant", content="So"),
        rejected=Message(role="assistant", content="No"),
    )
    assert _read(record, Task.PAIRWISE, prompt="question", query="", system="").prompt.messages == (
        Message(role="user", content="Why?"),
    )


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        # Defect 3 of the predecessor: chosen[0] with rejected[1] of two lists.
        ({"chosen": ["good", "c2"], "rejected": ["bad", "r2"]}, ("good", "bad")),
        ({"chosen": ["good"], "rejected": ["bad"]}, ("good", "bad")),
        ({"chosen": ["good", "bad"]}, ("good", "bad")),
        ({"chosen": ["good", "bad"], "rejected": None}, ("good", "bad")),
        ({"chosen": "good", "rejected": ["bad"]}, ("good", "bad")),
        ({"chosen": "good", "rejected": "bad"}, ("good", "bad")),
    ],
)
def test_a_pair_is_of_two_columns_or_of_one_list(columns, wanted):
    found = _read({"instruction": "Q", **columns}, Task.PAIRWISE)
    assert (found.chosen.content, found.rejected.content) == wanted


def test_one_list_may_be_named_twice():
    record = {"instruction": "Q", "answers": ["good", "bad", "worse"]}
    found = _read(record, Task.PAIRWISE, chosen="answers", rejected="answers")
    assert (found.chosen.content, found.rejected.content) == ("good", "bad")


def test_prompts_leave_the_answer_to_the_labels():
    record = {"instruction": "2+2?", "output": "4", "history": [["1+1?", "2"]], "level": 3}
    spec = SampleSpec(
        task=Task.PROMPT, format=Format.ALPACA, extra_keys=("labels", "level", "other")
    )
    found = spec.build()(record)
    assert found.conversation.messages == _turns(
        ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?")
    )
    assert found.extra == {"labels": "4", "level": "3"}


def test_prompts_need_no_answer():
    found = _read({"instruction": "2+2?"}, Task.PROMPT)
    assert found.conversation.messages == _turns(("user", "2+2?"))


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"instructions": "a", "output": "b"}, Reason.MISSING_KEY, "did you mean 'instructions'?"),
        ({"instruction": "a"}, Reason.MISSING_KEY, "no key 'output'; the record has instruction"),
        ({"instruction": 3, "output": "b"}, Reason.WRONG_TYPE, "is a number, want a string"),
        ({"instruction": "a", "output": ["b", "c"]}, Reason.WRONG_VALUE, "2 answers, want one"),
        ({"instruction": "a", "output": {"b": 1}}, Reason.WRONG_TYPE, "'output' is an object"),
        ({"instruction": "", "output": "b"}, Reason.EMPTY, "message 1 (user) has no text"),
        ({"instruction": "a", "output": None}, Reason.EMPTY, "message 2 (assistant) has no text"),
        ({"instruction": "a", "output": " \n"}, Reason.EMPTY, "message 2 (assistant) has no text"),
        (
            {"instruction": "a", "output": "b", "history": [["x"]]},
            Reason.WRONG_TURNS,
            "'history', pair 1 has 1 texts",
        ),
        (
            {"instruction": "a", "output": "b", "history": "[[1"},
            Reason.WRONG_VALUE,
            "'history' is '[[1', want JSON",
        ),
        (
            {"instruction": "a", "output": "b", "kto_tag": False},
            Reason.WRONG_VALUE,
            "want pairs of chosen and rejected",
        ),
    ],
)
def test_a_record_that_does_not_fit_says_why(record, reason, detail):
    refusal = _refusal(record)
    assert refusal.reason is reason
    assert detail in refusal.detail


def test_kto_records_are_read_as_plain_ones_where_the_tag_is_switched_off():
    record = {"instruction": "a", "output": "b", "kto_tag": False}
    assert _read(record, kto_tag="").messages == _turns(("user", "a"), ("assistant", "b"))


@pytest.mark.parametrize(
    ("columns", "reason", "detail"),
    [
        ({"chosen": ["good"]}, Reason.WRONG_VALUE, "a list of 1 answers, want two"),
        ({"chosen": "good"}, Reason.MISSING_KEY, "no key 'rejected'"),
        ({"chosen": "good", "rejected": ""}, Reason.EMPTY, "the rejected answer has no text"),
        ({"chosen": [], "rejected": ["b"]}, Reason.EMPTY, "a list without answers"),
        ({"chosen": [{"role": "user"}], "rejected": "b"}, Reason.WRONG_TYPE, "--format openai"),
    ],
)
def test_a_pair_that_is_none_says_why(columns, reason, detail):
    refusal = _refusal({"instruction": "Q", **columns}, Task.PAIRWISE)
    assert refusal.reason is reason
    assert detail in refusal.detail


@pytest.mark.parametrize(
    ("map_keys", "message"),
    [
        ({"promt": "question"}, "no key 'promt' in the format alpaca.*did you mean 'prompt'"),
        ({"prompt": 3}, "'prompt' is a number, want the name of a column"),
        ({"kto_tag": "tag"}, "kto_tag marks single answers"),
        ({"messages": "m"}, "no key 'messages' in the format alpaca"),
    ],
)
def test_unknown_map_keys_are_errors_of_usage(map_keys, message):
    with pytest.raises(UsageError, match=message):
        SampleSpec(task=Task.SFT, format=Format.ALPACA, map_keys=map_keys)
