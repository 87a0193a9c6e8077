"""Whatever a record holds, it gives a sample of the task or is refused."""

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_data.config import Task
from llm_data.messages import Conversation, Preference, Prompt, StepRewards
from llm_data.records import RecordRefusedError
from llm_data.samples.columns import Format
from llm_data.samples.spec import SampleSpec
from llm_data.samples.texts import TextSpec

_KINDS = {
    Task.SFT: Conversation,
    Task.PAIRWISE: Preference,
    Task.PROMPT: Prompt,
    Task.PRM: StepRewards,
}
_CHAT = (Format.ALPACA, Format.SHAREGPT, Format.OPENAI, Format.BELLE, Format.MOSS, Format.LEETCODE)
_RUNS = [(task, layout) for task in (Task.SFT, Task.PAIRWISE, Task.PROMPT) for layout in _CHAT]
_RUNS.append((Task.PRM, Format.STEPS))

_KEYS = [
    *("instruction", "input", "output", "history", "system", "tools", "chosen", "rejected"),
    *("conversations", "messages", "prompt", "from", "value", "role", "content", "tool_calls"),
    *("function", "function_call", "name", "arguments", "id", "type", "text", "weight"),
    *("reasoning", "tool_call_id", "label", "kto_tag", "chat", "turn_1", "Human", "MOSS"),
    *("code_with_problem", "code_only", "explanation_only", "title", "question_body"),
    "answer_body",
]
_ROLES = ["human", "gpt", "observation", "function_call", "system", "user", "assistant", "tool"]
_WORDS = [
    *_ROLES,
    *("", " ", "x", "ки", "+", "Human:a", "Assistant:", "<think>a</think>[]", "text"),
    *('{"name":"f","arguments":{}}', '[{"name":"f"}]', "[", "[]", "null", "1"),
]
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.sampled_from(_WORDS),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(_ROLES), "content": _SCALARS},
        optional={"tool_calls": _VALUES, "weight": _SCALARS, "reasoning": _SCALARS},
    ),
    max_size=5,
)
_TAGGED = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(_ROLES), "value": _SCALARS}), max_size=5
)
_COLUMNS = st.one_of(_SCALARS, _VALUES, _MESSAGES, _TAGGED)
_RECORDS = st.dictionaries(st.sampled_from(_KEYS), _COLUMNS, max_size=7)


@pytest.mark.parametrize(("task", "layout"), _RUNS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(record=_RECORDS)
@example(record={"chosen": [None, []], "messages": []})
def test_any_object_gives_a_sample_or_is_refused(task, layout, record):
    read = SampleSpec(task=task, format=layout, extra_keys=("labels", "system")).build()
    body = orjson.loads(orjson.dumps(record))
    try:
        found = read(body)
    except RecordRefusedError:
        return
    assert isinstance(found, _KINDS[task])


@pytest.mark.parametrize("layout", [Format.ALPACA, Format.SHAREGPT, Format.STACK_OVERFLOW])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(record=_RECORDS)
def test_any_object_gives_a_text_or_is_refused(layout, record):
    read = TextSpec(format=layout).build()
    try:
        found = read(orjson.loads(orjson.dumps(record)))
    except RecordRefusedError:
        return
    assert isinstance(found, str)
