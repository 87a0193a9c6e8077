"""Process rewards: Math-Shepherd's records, and MindSpeed-LLM's with a list of rewards."""

import pytest

from llm_data.config import Task
from llm_data.messages import StepRewards
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.columns import Format
from llm_data.samples.spec import SampleSpec

_TEXT = "Two and two? Step 1: 2+2=4 ки\nStep 2: The answer is: 5 ки"
# The layout of Math-Shepherd's dataset card: a question mark stands where a reward will.
_CARD = "Two and two? Step 1: 2+2=4 ки ?\n\nStep 2: 5 ки ?"


def _read(record, **options):
    return SampleSpec(task=Task.PRM, format=Format.STEPS, **options).build()(record)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"input": _TEXT, "value": ["+", "-"]}, _TEXT),
        ({"input": _TEXT, "value": '["+", "-"]', "label": "not read"}, _TEXT),
        (
            {"input": _TEXT, "label": "Two and two? Step 1: 2+2=4 +\nStep 2: The answer is: 5 -"},
            _TEXT,
        ),
        ({"input": _CARD, "label": "Two and two? Step 1: 2+2=4 ки +\n\nStep 2: 5 ки -"}, _CARD),
        ({"input": _TEXT + " end", "value": ["+", "-"]}, _TEXT + " end"),
        (
            {"input": _TEXT + " -", "label": _TEXT.replace("ки", "+", 1).replace("ки", "-") + " -"},
            _TEXT + " -",
        ),
    ],
)
def test_rewards_come_from_a_list_or_from_the_labelled_text(record, text):
    assert _read(record) == StepRewards(text=text, rewards=("+", "-"))


def test_rewards_in_a_labelled_text_may_be_longer_words():
    found = _read({"input": _TEXT, "label": _TEXT.replace("ки", "good", 1).replace("ки", "bad")})
    assert found == StepRewards(text=_TEXT, rewards=("good", "bad"))


def test_columns_and_placeholder_have_names_of_their_own():
    found = _read(
        {"solution": "a <step> b <step>", "scores": ["good", "bad"]},
        map_keys={"input": "solution", "value": "scores"},
        placeholder="<step>",
    )
    assert found == StepRewards(text="a <step> b <step>", rewards=("good", "bad"))


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"input": _TEXT, "value": ["+"]}, Reason.WRONG_VALUE, "2 placeholders 'ки' for 1 rewards"),
        ({"input": _TEXT}, Reason.MISSING_KEY, "no key 'value'"),
        ({"inputs": _TEXT, "value": []}, Reason.MISSING_KEY, "did you mean 'inputs'?"),
        ({"input": " ", "value": []}, Reason.EMPTY, "'input' has no text"),
        ({"input": _TEXT, "value": ["+", 0.5]}, Reason.WRONG_TYPE, "reward 2 is a number"),
        ({"input": _TEXT, "value": "+"}, Reason.WRONG_VALUE, "'value' is '+', want JSON"),
        ({"input": _TEXT, "label": "Three? +"}, Reason.WRONG_VALUE, "another text before"),
        (
            {"input": _TEXT, "label": "Two and two? Step 1: 2+2=4 \nStep 2: The answer is: 5 -"},
            Reason.WRONG_VALUE,
            "no single word in the place of placeholder 1",
        ),
        (
            {"input": _TEXT, "label": "Two and two? Step 1: 2+2=4 +\nStep 2: The answer is: 5 ки"},
            Reason.WRONG_VALUE,
            "without a word after it",
        ),
    ],
)
def test_steps_that_do_not_fit_say_why(record, reason, detail):
    with pytest.raises(RecordRefusedError) as caught:
        _read(record)
    assert caught.value.reason is reason
    assert detail in caught.value.detail
