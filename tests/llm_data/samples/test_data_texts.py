"""Texts to pretrain on, as MindSpeed-LLM's pretraining handlers write them."""

import pytest

from llm_data.errors import UsageError
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.columns import Format
from llm_data.samples.texts import TextSpec


def test_alpaca_texts_have_the_predecessors_preamble():
    read = TextSpec(format=Format.ALPACA).build()
    found = read({"instruction": "Translate.", "input": "Tag", "output": "Day"})
    assert found == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.USER: Below is an "
        "instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nTranslate.\n\n### Input:\nTag\n\n### Response: ASSISTANT: "
        "Day"
    )
    # Theirs says "###None" here.
    without = read({"instruction": "Sing.", "input": "", "output": "La"})
    assert without.endswith("### Instruction:\nSing.\n\n### Response: ASSISTANT: La")


def test_messages_follow_each_other_without_a_mark():
    read = TextSpec(format=Format.SHAREGPT, map_keys={"messages": "chat"}).build()
    turns = [{"from": "human", "value": "How? "}, {"role": "user", "content": "So."}]
    assert read({"chat": turns}) == "How? So."


def test_stack_overflow_texts():
    record = {"title": "sort a list", "question_body": "How?", "answer_body": "sorted(x)"}
    assert TextSpec(format=Format.STACK_OVERFLOW).build()(record) == (
        "In python, sort a list\n### Question:\nHow?\n### Response:\nsorted(x)\n"
    )


@pytest.mark.parametrize(
    ("layout", "record", "reason", "detail"),
    [
        (Format.ALPACA, {"output": "x"}, Reason.MISSING_KEY, "no key 'instruction'"),
        (Format.ALPACA, {"instruction": "x", "output": ""}, Reason.EMPTY, "'output' has no text"),
        (
            Format.SHAREGPT,
            {"conversations": [{"from": "a"}]},
            Reason.MISSING_KEY,
            "no key 'content'",
        ),
        (Format.SHAREGPT, {"text": "x"}, Reason.MISSING_KEY, "no key 'conversations'"),
        (Format.STACK_OVERFLOW, {"title": "x"}, Reason.MISSING_KEY, "no key 'question_body'"),
    ],
)
def test_a_record_without_its_texts_says_why(layout, record, reason, detail):
    with pytest.raises(RecordRefusedError) as caught:
        TextSpec(format=layout).build()(record)
    assert caught.value.reason is reason
    assert detail in caught.value.detail


def test_formats_of_conversations_alone_give_no_text():
    with pytest.raises(
        UsageError, match="the format moss gives no text to pretrain on; want alpaca"
    ):
        TextSpec(format=Format.MOSS)
