"""ShareGPT and OpenAI records, by the documented rules of LLaMA-Factory and OpenAI."""

import orjson
import pyarrow as pa
import pytest

from llm_data.config import Task
from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, ToolCall
from llm_data.records import Reason, RecordRefusedError
from llm_data.samples.columns import Format
from llm_data.samples.spec import SampleSpec

_WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
_WRAPPED = {"type": "function", "function": _WEATHER}
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def _sharegpt(*pairs) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


def _openai(*pairs) -> list[dict[str, object]]:
    return [{"role": role, "content": text} for role, text in pairs]


def _turns(*pairs) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=text) for role, text in pairs)


def _read(record, task=Task.SFT, layout=Format.OPENAI, **map_keys):
    return SampleSpec(task=task, format=layout, map_keys=map_keys).build()(record)


def _refusal(record, task=Task.SFT, layout=Format.OPENAI, **map_keys) -> RecordRefusedError:
    with pytest.raises(RecordRefusedError) as caught:
        _read(record, task, layout, **map_keys)
    return caught.value


@pytest.mark.parametrize("tools", [[_WEATHER], [_WRAPPED], orjson.dumps([_WEATHER]).decode()])
def test_sharegpt_calls_and_observations(tools):
    call = '{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}'
    record = {
        "conversations": _sharegpt(
            ("human", "Rain in Ulm?"),
            ("function_call", call),
            ("observation", '{"rain": true}'),
            ("gpt", "Yes."),
        ),
        "system": "You forecast.",
        "tools": tools,
    }
    asked = ToolCall(name="weather", arguments={"city": "Ulm", "days": 2})
    assert _read(record, layout=Format.SHAREGPT) == Conversation(
        messages=(
            Message(role="system", content="You forecast."),
            Message(role="user", content="Rain in Ulm?"),
            Message(role="assistant", tool_calls=(asked,)),
            Message(role="tool", content='{"rain": true}'),
            Message(role="assistant", content="Yes."),
        ),
        tools=(_WRAPPED,),
    )


def test_a_function_call_may_be_a_list_behind_a_thought():
    calls = '[{"name": "a", "arguments": "{\\"x\\": 1}"}, {"name": "b"}]'
    record = {
        "conversations": _sharegpt(
            ("human", "Do both."),
            ("function_call", f"<think>\nTwo calls.\n</think>\n\n{calls}"),
        )
    }
    assert _read(record, layout=Format.SHAREGPT).messages[1] == Message(
        role="assistant",
        thought="Two calls.",
        tool_calls=(ToolCall(name="a", arguments={"x": 1}), ToolCall(name="b", arguments={})),
    )


def test_openai_messages_keep_calls_ids_thoughts_and_weights():
    record = {
        "messages": [
            {"role": "developer", "content": "Be exact."},
            {"role": "user", "content": [{"type": "text", "text": "Sum "}, {"text": "1 and 2"}]},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Two calls.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "c2", "function": {"name": "g", "arguments": {"n": [1, 2]}}},
                ],
                "weight": 0,
            },
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": ""},
            {"role": "tool", "tool_call_id": "c2", "content": "3"},
            {"role": "assistant", "content": "<think>Three.</think>3", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "g"}],
    }
    found = _read(record)
    assert found.messages == (
        Message(role="system", content="Be exact."),
        Message(role="user", content="Sum 1 and 2"),
        Message(
            role="assistant",
            thought="Two calls.",
            tool_calls=(
                ToolCall(name="f", arguments={}, id="c1"),
                ToolCall(name="g", arguments={"n": [1, 2]}, id="c2"),
            ),
            is_trained=False,
        ),
        Message(role="tool", content="", tool_call_id="c1", name="f"),
        Message(role="tool", content="3", tool_call_id="c2"),
        Message(role="assistant", content="<think>Three.</think>3"),
    )
    assert [tool["function"]["name"] for tool in found.tools] == ["f", "g"]


def test_openais_older_calls_are_calls():
    record = {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "weather", "arguments": '{"city": "Ulm"}'},
            },
            {"role": "function", "name": "weather", "content": "no"},
            {"role": "assistant", "content": "No."},
        ]
    }
    found = _read(record).messages
    assert found[1].tool_calls == (ToolCall(name="weather", arguments={"city": "Ulm"}),)
    assert found[2] == Message(role="tool", content="no", name="weather")


def test_a_table_that_fills_rows_with_null_gives_the_same_samples():
    records = [
        {
            "messages": [
                {"role": "user", "content": "Rain?"},
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "w", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "no", "tool_call_id": "1"},
                {"role": "assistant", "content": "No.", "weight": 0},
            ],
            "tools": '[{"name": "w"}]',
        },
        {"messages": _openai(("user", "Hi"), ("assistant", "Ho")), "system": "Be kind."},
    ]
    rows = pa.Table.from_pylist(records, schema=_schema()).to_pylist()
    assert rows != records
    assert [_read(row) for row in rows] == [_read(record) for record in records]


def _schema() -> pa.Schema:
    call = pa.struct(
        {"id": pa.string(), "function": pa.struct({"name": pa.string(), "arguments": pa.string()})}
    )
    texts = {name: pa.string() for name in ("role", "content", "tool_call_id", "reasoning")}
    message = pa.struct({**texts, "tool_calls": pa.list_(call), "weight": pa.int64()})
    return pa.schema({"messages": pa.list_(message), "tools": pa.string(), "system": pa.string()})


def test_tags_are_all_seven_given_anew():
    record = {"messages": _openai(("system", "S"), ("user", "U"), ("assistant", "A"))}
    found = _read(record, layout=Format.SHAREGPT, messages="messages", tags=_OPENAI_TAGS)
    assert found.messages == _turns(("system", "S"), ("user", "U"), ("assistant", "A"))
    record["messages"].insert(2, {"role": "observation", "content": "O"})
    refusal = _refusal(record, layout=Format.SHAREGPT, messages="messages", tags=_OPENAI_TAGS)
    assert refusal.reason is Reason.UNKNOWN_ROLE
    assert "message 3, 'role' is 'observation', want system, assistant, user" in refusal.detail


def test_a_system_message_overrides_the_system_column_and_an_empty_one_is_none():
    turns = (("human", "U"), ("gpt", "A"))
    with_both = {"conversations": _sharegpt(("system", "own"), *turns), "system": "column"}
    without = {"conversations": _sharegpt(("system", ""), *turns), "system": "column"}
    assert _read(with_both, layout=Format.SHAREGPT).messages[0].content == "own"
    assert _read(without, layout=Format.SHAREGPT).messages == _turns(
        ("user", "U"), ("assistant", "A")
    )


@pytest.mark.parametrize(
    ("roles", "found"),
    [
        ("uu", "message 2 is user, want assistant after user"),
        ("uaa", "message 3 is assistant, want user or tool after assistant"),
        ("aua", "message 1 is assistant, want user first"),
        ("su", "the last message is user, want assistant last"),
        ("ssua", "message 2 is system, want user first"),
        ("uasua", "message 3 is system, want user or tool after assistant"),
        ("ta", "message 1 is tool, want user first"),
        ("s", "there are no turns, want assistant last"),
    ],
)
def test_turns_out_of_order_say_which(roles, found):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    refusal = _refusal({"messages": _openai(*((names[role], "x") for role in roles))})
    assert refusal.reason is Reason.WRONG_TURNS
    assert found in refusal.detail
    assert (
        f"the {len(roles)} messages are {' '.join(names[role] for role in roles)}" in refusal.detail
    )


@pytest.mark.parametrize(
    ("message", "reason", "detail"),
    [
        ({"role": "bot", "content": "x"}, Reason.UNKNOWN_ROLE, "message 2, 'role' is 'bot'"),
        ({"role": 3, "content": "x"}, Reason.WRONG_TYPE, "'role' is a number, want a string"),
        ({"content": "x"}, Reason.MISSING_KEY, "no key 'role'; message 2 has content"),
        ({"role": "assistant", "contents": "x"}, Reason.MISSING_KEY, "did you mean 'contents'?"),
        ({"role": "assistant", "content": 1}, Reason.WRONG_TYPE, "'content' is a number"),
        ({"role": "assistant", "content": None}, Reason.EMPTY, "message 2 (assistant) has no text"),
        ("x", Reason.WRONG_TYPE, "message 2 is a string, want an object"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]},
            Reason.WRONG_VALUE,
            "part 1 is of type 'image_url', want text",
        ),
        (
            {"role": "assistant", "content": "x", "weight": 0.5},
            Reason.WRONG_VALUE,
            "'weight' is 0.5, want 0 or 1",
        ),
        (
            {"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"},
            Reason.WRONG_VALUE,
            "reasoning_content, reasoning with different texts",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
            Reason.WRONG_VALUE,
            "'tool_calls', call 1 has no name",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x"}]},
            Reason.WRONG_VALUE,
            "'arguments' is '{x', want JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]},
            Reason.WRONG_TYPE,
            "'arguments' is a list, want an object",
        ),
    ],
)
def test_a_message_that_does_not_fit_says_why(message, reason, detail):
    refusal = _refusal({"messages": [{"role": "user", "content": "Q"}, message]})
    assert refusal.reason is reason
    assert detail in refusal.detail


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"conversation": []}, Reason.MISSING_KEY, "did you mean 'conversation'?"),
        ({"messages": []}, Reason.EMPTY, "'messages' has no messages"),
        ({"messages": {}}, Reason.WRONG_TYPE, "'messages' is an object, want a list"),
        (
            {"messages": _openai(("user", "Q"), ("assistant", "A")), "tools": "[{"},
            Reason.WRONG_VALUE,
            "'tools' is '[{', want JSON",
        ),
        (
            {"messages": _openai(("user", "Q"), ("assistant", "A")), "tools": [{}]},
            Reason.WRONG_VALUE,
            "'tools', tool 1 has no name",
        ),
    ],
)
def test_a_chat_record_that_does_not_fit_says_why(record, reason, detail):
    refusal = _refusal(record)
    assert refusal.reason is reason
    assert detail in refusal.detail


_PROMPT = (("system", "S"), ("user", "Q"))
_BETTER = {"role": "assistant", "content": "good"}
_WORSE = {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    "record",
    [
        # LLaMA-Factory: a message a side.
        {"messages": _openai(*_PROMPT), "chosen": _BETTER, "rejected": _WORSE},
        # TRL, explicit prompt: a list of one message a side.
        {"prompt": _openai(*_PROMPT), "chosen": [_BETTER], "rejected": [_WORSE]},
        # TRL, implicit prompt: two whole conversations.
        {"chosen": [*_openai(*_PROMPT), _BETTER], "rejected": [*_openai(*_PROMPT), _WORSE]},
        # UltraFeedback: the prompt as text besides, which the conversations repeat.
        {
            "prompt": "Q",
            "messages": [*_openai(*_PROMPT), _BETTER],
            "chosen": [*_openai(*_PROMPT), _BETTER],
            "rejected": [*_openai(*_PROMPT), _WORSE],
        },
        {"messages": _openai(*_PROMPT), "chosen": "good", "rejected": "bad"},
        {"messages": _openai(("user", "Q")), "system": "S", "chosen": "good", "rejected": "bad"},
        {
            "chosen": [_openai(("user", "Q"))[0], _BETTER],
            "rejected": [_openai(("user", "Q"))[0], _WORSE],
            "system": "S",
        },
    ],
)
def test_pairs_of_every_layout_are_the_same_preference(record):
    found = _read(record, Task.PAIRWISE)
    assert found.prompt.messages == _turns(*_PROMPT)
    assert found.chosen == Message(role="assistant", content="good")
    assert found.rejected == Message(role="assistant", content="bad")


def test_sharegpt_pairs():
    record = {
        "conversations": _sharegpt(("human", "1"), ("gpt", "2"), ("human", "3")),
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    }
    found = _read(record, Task.PAIRWISE, Format.SHAREGPT)
    assert found.prompt.messages == _turns(("user", "1"), ("assistant", "2"), ("user", "3"))
    assert (found.chosen.content, found.rejected.content) == ("good", "bad")


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        (
            {
                "messages": _openai(("user", "Q"), ("assistant", "A")),
                "chosen": "g",
                "rejected": "b",
            },
            "the last message is assistant, want user or tool last",
        ),
        (
            {
                "chosen": [*_openai(("user", "Q")), _BETTER],
                "rejected": [*_openai(("user", "R")), _WORSE],
            },
            "they differ from message 1 on",
        ),
        (
            {
                "chosen": [*_openai(("user", "Q")), _BETTER],
                "rejected": [*_openai(*_PROMPT), _WORSE],
            },
            "chosen has 2 messages and rejected 3, they differ from message 1 on",
        ),
        (
            {
                "messages": _openai(("user", "Q")),
                "chosen": {"role": "user", "content": "x"},
                "rejected": "b",
            },
            "'chosen' ends with a message of user, want assistant",
        ),
    ],
)
def test_pairs_whose_turns_are_wrong_say_why(record, detail):
    refusal = _refusal(record, Task.PAIRWISE)
    assert refusal.reason is Reason.WRONG_TURNS
    assert detail in refusal.detail


@pytest.mark.parametrize("answer", [[], _openai(("assistant", "4"))])
def test_prompts_end_with_the_last_turn_that_is_no_answer(answer):
    turns = _openai(("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"))
    spec = SampleSpec(task=Task.PROMPT, format=Format.OPENAI, extra_keys=("labels", "meta"))
    found = spec.build()({"messages": [*turns, *answer], "meta": {"a": ["ü"]}})
    assert found.conversation.messages == _turns(
        ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?")
    )
    assert found.extra == ({"labels": "4"} if answer else {}) | {"meta": '{"a":["ü"]}'}


@pytest.mark.parametrize(
    ("map_keys", "message"),
    [
        ({"tags": {"role_tags": "r"}}, "no tag 'role_tags'.*did you mean 'role_tag'"),
        ({"tags": {"role_tag": "r"}}, "no content_tag, user_tag, assistant_tag in 'tags'"),
        ({"tags": "role"}, "'tags' is a string, want an object"),
        ({"tags": {**_OPENAI_TAGS, "role_tag": 1}}, "the tag 'role_tag' is a number"),
        ({"prompt": "x"}, "no key 'prompt' in the format openai"),
        ({"kto_tag": "x"}, "kto_tag marks single answers"),
    ],
)
def test_unknown_map_keys_and_tags_are_errors_of_usage(map_keys, message):
    with pytest.raises(UsageError, match=message):
        SampleSpec(task=Task.SFT, format=Format.OPENAI, map_keys=map_keys)
