"""Corpora with columns of their own: what the predecessor's handlers take from each, by hand."""

import pytest

from llm_data.config import Task
from llm_data.messages import Message
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.columns import Format
from llm_data.samples.spec import SampleSpec


def _turns(*texts) -> tuple[Message, ...]:
    roles = ("user", "assistant") * len(texts)
    return tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))


def _read(record, layout, task=Task.SFT):
    return SampleSpec(task=task, format=layout).build()(record)


_BELLE = {
    "instruction": "Human: 你好\nAssistant:你好。\nHuman:再见 \nAssistant:",
    "input": "",
    "output": "再见。\n",
}
_MOSS = {
    "conversation_id": 1,
    "meta_instruction": "You are MOSS.",
    "chat": {
        "turn_1": {
            "Human": "<|Human|>: How do I sing?<eoh>\n",
            "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
            "MOSS": "<|MOSS|>: Loudly.<eom>\n",
        },
        "turn_2": {"Human": "<|Human|>: Thanks<eoh>\n", "MOSS": "<|MOSS|>: Welcome.<eom>\n"},
        "turn_3": None,
    },
}
_LEETCODE = {
    "code_with_problem": "# Two Sum\nFind two.\n\n```python\nreturn 1\n```",
    "code_only": "return 1",
    "explanation_only": "It is one.",
}


@pytest.mark.parametrize(
    ("layout", "record", "texts"),
    [
        (Format.BELLE, _BELLE, ("你好", "你好。", "再见", "再见。")),
        (Format.BELLE, {"instruction": "Human: Hi", "output": "Ho"}, ("Hi", "Ho")),
        (Format.MOSS, _MOSS, ("How do I sing?", "Loudly.", "Thanks", "Welcome.")),
        (Format.LEETCODE, _LEETCODE, ("# Two Sum\nFind two.", "return 1\nIt is one.")),
    ],
)
def test_turns_are_what_both_sides_say(layout, record, texts):
    assert _read(record, layout).messages == _turns(*texts)
    assert _read(record, layout, Task.PROMPT).conversation.messages == _turns(*texts[:-1])


@pytest.mark.parametrize(
    ("layout", "record", "reason", "detail"),
    [
        (Format.BELLE, {**_BELLE, "instruction": "Hi"}, Reason.WRONG_VALUE, "does not begin with"),
        (
            Format.BELLE,
            {**_BELLE, "instruction": "Human:a\nAssistant:b\nAssistant:c\nHuman:d\nAssistant:"},
            Reason.WRONG_TURNS,
            "turn 1 has 2 answers, want one",
        ),
        (
            Format.BELLE,
            {**_BELLE, "instruction": "Human:a\nAssistant:b"},
            Reason.WRONG_TURNS,
            "turn 1 has 1 answers, want none before 'output'",
        ),
        (Format.BELLE, {**_BELLE, "output": ""}, Reason.EMPTY, "message 4 (assistant) has no text"),
        (Format.MOSS, {"chat": {}}, Reason.WRONG_TURNS, "there are no turns"),
        (Format.MOSS, {"chat": []}, Reason.WRONG_TYPE, "'chat' is a list, want an object"),
        (Format.MOSS, {"chat": {"t": {"Human": "a"}}}, Reason.MISSING_KEY, "no key 'MOSS'"),
        (Format.LEETCODE, {"code_only": "x"}, Reason.MISSING_KEY, "no key 'code_with_problem'"),
    ],
)
def test_a_record_that_does_not_fit_says_why(layout, record, reason, detail):
    with pytest.raises(RecordRefusedError) as caught:
        _read(record, layout)
    assert caught.value.reason is reason
    assert detail in caught.value.detail


def test_a_corpus_has_no_pairs():
    with pytest.raises(RecordRefusedError, match="no pair of answers"):
        _read(_BELLE, Format.BELLE, Task.PAIRWISE)
