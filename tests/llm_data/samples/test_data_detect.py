"""`--format auto`: the first record's keys decide, records that do not fit say so."""

import pytest

from llm_data.config import Task
from llm_data.errors import UsageError
from llm_data.records import RecordRefusedError
from llm_data.samples.columns import Format
from llm_data.samples.detect import detect_format
from llm_data.samples.spec import SampleSpec

_OPENAI = [{"role": "user", "content": "Q"}]
_SHAREGPT = [{"from": "human", "value": "Q"}]


@pytest.mark.parametrize(
    ("record", "task", "map_keys", "wanted"),
    [
        ({"instruction": "a", "output": "b"}, Task.SFT, {}, Format.ALPACA),
        ({"question": "a", "answer": "b"}, Task.SFT, {"prompt": "question"}, Format.ALPACA),
        ({"conversations": _SHAREGPT}, Task.SFT, {}, Format.SHAREGPT),
        ({"conversations": _OPENAI}, Task.SFT, {}, Format.OPENAI),
        ({"messages": _OPENAI, "instruction": "x"}, Task.SFT, {}, Format.OPENAI),
        ({"messages": _SHAREGPT}, Task.SFT, {}, Format.SHAREGPT),
        ({"chat": _SHAREGPT}, Task.SFT, {"messages": "chat"}, Format.SHAREGPT),
        ({"messages": '[{"role": "user"}]'}, Task.SFT, {}, Format.OPENAI),
        ({"x": [{"who": "me"}]}, Task.SFT, {"messages": "x", "tags": {}}, Format.SHAREGPT),
        ({"chosen": _OPENAI, "rejected": _OPENAI}, Task.PAIRWISE, {}, Format.OPENAI),
        ({"prompt": _OPENAI}, Task.PROMPT, {}, Format.OPENAI),
        ({"instruction": "a", "chosen": "b"}, Task.PAIRWISE, {}, Format.ALPACA),
        ({"input": "a", "value": []}, Task.PRM, {}, Format.STEPS),
    ],
)
def test_keys_tell_the_format(record, task, map_keys, wanted):
    assert detect_format(record, task=task, map_keys=map_keys, where="x") is wanted


@pytest.mark.parametrize("record", [{}, {"text": "x"}, {"messages": "x"}, {"messages": [[]]}])
def test_a_record_of_no_format_is_an_error_of_usage(record):
    with pytest.raises(UsageError, match=r"the first record has .*; want 'messages' with 'role'"):
        detect_format(record, task=Task.SFT, map_keys={}, where="x")


def test_a_later_record_of_another_format_says_what_was_detected():
    read = SampleSpec(task=Task.SFT, format=Format.SHAREGPT, is_detected=True).build()
    with pytest.raises(RecordRefusedError, match="--format auto took sharegpt for all"):
        read({"instruction": "a", "output": "b"})


def test_a_format_that_was_named_is_not_blamed_on_detection():
    read = SampleSpec(task=Task.SFT, format=Format.SHAREGPT).build()
    with pytest.raises(RecordRefusedError) as caught:
        read({"instruction": "a", "output": "b"})
    assert "--format auto" not in caught.value.detail
