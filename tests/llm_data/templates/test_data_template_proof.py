"""Masks that cannot be proven are refused, when a template is loaded or when a text is written."""

import pickle
from hashlib import sha256
from pathlib import Path

import pytest

import llm_data.templates
from llm_data.errors import UsageError
from llm_data.messages import Conversation, Message, ToolCall
from llm_data.records import Reason, RecordRefusedError
from llm_data.templates import SpecialTokens, Template, TemplateSource, Thinking, library_template

SPECIAL = SpecialTokens(bos="<s>", eos="</s>")
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
USER = "{% if m.role != 'assistant' %}{{ m.content + '<|im_end|>\n' }}{% else %}"
OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"
GOOD = (
    HEAD
    + USER
    + "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endif %}"
    + TAIL
)
PLAIN = HEAD + "{{ m.content + '<|im_end|>\n' }}" + TAIL


def _talk(*pairs):
    return Conversation(messages=tuple(Message(role=role, content=text) for role, text in pairs))


def _template(text, *, special=SPECIAL, **more):
    return Template(TemplateSource(name="own", text=text, **more), special)


TALK = _talk(("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # Everything is marked.
        (f"{OPEN}{GOOD.replace(OPEN, '').replace(CLOSE, '')}{CLOSE}", "holds another message"),
        # The marks stand around the user's words.
        (
            HEAD
            + "{% if m.role == 'user' %}{% generation %}{{ m.content + '<|im_end|>' }}"
            + "{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
            + TAIL,
            "does not hold the answer|does not tell",
        ),
        # The header of an answer is marked too.
        (
            GOOD.replace("{{ '<|im_start|>' + m.role + '\n' }}", "").replace(
                "{% generation %}", "{% generation %}{{ '<|im_start|>assistant\n' }}"
            ),
            "begins with",
        ),
        # The end token is not marked.
        (
            GOOD.replace(
                "{{ m.content + '<|im_end|>' }}{% endgeneration %}",
                "{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}",
            ),
            r"ends in 'Jorplat', want <\|im_end\|>",
        ),
        # Only the last answer is marked.
        (
            GOOD.replace(
                "{% else %}{% generation %}",
                "{% elif not loop.last %}{{ m.content + '<|im_end|>\n' }}{% else %}" + OPEN,
            ),
            "learned text for the messages",
        ),
        # No end token, with and without marks.
        (GOOD.replace("<|im_end|>", ""), "no end token"),
        (PLAIN.replace("<|im_end|>", ""), "no end token"),
        # Without marks, and what precedes an answer changes with what follows it.
        (
            PLAIN.replace("m.role", "messages | length | string + m.role"),
            "not how the whole conversation begins",
        ),
        # Marks inside a macro: no place in the text.
        (
            "{% macro say(m) %}{{ 'x' }}{% generation %}{{ m.content + '<|im_end|>' }}"
            "{% endgeneration %}{% endmacro %}"
            + HEAD
            + USER
            + "{{ say(m) }}{{ '\n' }}{% endif %}"
            + TAIL,
            "does not tell",
        ),
        # It leaves the user's words out.
        (GOOD.replace("{{ m.content + '<|im_end|>\n' }}{% else", "{% else"), "leaves it out"),
        (PLAIN.replace("m.content", "m.content[:3]"), "answer 0 times"),
        # Today's date would make tomorrow's output another.
        ("{{ strftime_now('%Y') }}" + GOOD, "today's date"),
        ("{% for %}", "line 1"),
    ],
)  # fmt: skip
def test_a_template_without_a_provable_mask_is_refused(text, problem):
    with pytest.raises(UsageError, match=problem):
        _template(text)


def test_the_text_those_are_made_from_is_accepted():
    for text in (GOOD, PLAIN):
        rendered = _template(text).render(TALK)
        learned = [rendered.text[span.start : span.end] for span in rendered.spans]
        assert learned == ["two<|im_end|>", "four<|im_end|>"]
        assert [span.message for span in rendered.spans] == [1, 3]


def test_white_space_behind_an_end_token_is_not_learned():
    text = GOOD.replace(
        "<|im_end|>' }}{% endgeneration %}{{ '\n'", "<|im_end|>\n' }}{% endgeneration %}{{ ''"
    )
    assert _template(text).render(TALK) == _template(GOOD).render(TALK)


def test_a_date_makes_a_template_that_asks_for_today_fit_to_use():
    template = _template("{{ strftime_now('%d %b %Y') }}" + GOOD, date="2026-01-31")
    assert template.render(TALK).text.startswith("31 Jan 2026<|im_start|>")


@pytest.mark.parametrize("text", [GOOD, PLAIN])
def test_answers_that_look_like_the_template_keep_exact_spans(text):
    """End tokens, headers and other messages' words inside an answer do not move its borders."""
    hard = ["one", "<|im_end|>", "<|im_start|>user\none<|im_end|>\n", "", " ", "a<|im_end|>\nb"]
    turns = [turn for words in hard for turn in (("user", words), ("assistant", words))]
    rendered = _template(text).render(_talk(*turns))
    learned = [rendered.text[span.start : span.end] for span in rendered.spans]
    assert learned == [f"{words}<|im_end|>" for words in hard]


def test_an_answer_that_a_template_changes_is_refused():
    text = PLAIN.replace("m.content", "m.content.replace('two', '2')")
    with pytest.raises(RecordRefusedError, match="not the answer as the record has it") as refused:
        _template(text).render(TALK)
    assert refused.value.reason is Reason.UNPROVEN_MASK


def test_a_part_that_a_template_leaves_out_is_refused():
    text = PLAIN.replace(HEAD, HEAD.replace("messages", "messages if m.role != 'system'"))
    with_system = _talk(("system", "Be kind."), *[(m.role, m.content) for m in TALK.messages])
    with pytest.raises(RecordRefusedError, match=r"message 0 \(system\)") as refused:
        _template(text).render(with_system)
    assert refused.value.reason is Reason.NOT_IN_TEMPLATE


def test_a_template_without_tools_refuses_conversations_with_tools():
    call = Message(role="assistant", tool_calls=(ToolCall(name="look", arguments={"a": 1}),))
    answered = Message(role="tool", content="3", name="look")
    talks = (
        Conversation(messages=(*TALK.messages[:1], call, answered, TALK.messages[1])),
        Conversation(
            messages=TALK.messages, tools=({"type": "function", "function": {"name": "look"}},)
        ),
    )
    for tools in ("", "own"):
        template = _template(PLAIN, tools=tools)
        assert not template.takes_tools
        for talk in talks:
            with pytest.raises(RecordRefusedError, match="takes no tools") as refused:
                template.render(talk)
            assert refused.value.reason is Reason.NOT_IN_TEMPLATE


def test_a_call_whose_arguments_hold_the_end_token_is_refused():
    call = ToolCall(name="look", arguments={"a": "<|im_end|>"})
    talk = Conversation(
        messages=(Message(role="user", content="x"), Message(role="assistant", tool_calls=(call,))),
        tools=({"type": "function", "function": {"name": "look", "parameters": {}}},),
    )
    with pytest.raises(RecordRefusedError, match="hold the end token"):
        Template(library_template("qwen3"), SPECIAL).render(talk)


def test_the_last_thought_is_never_lost():
    """A template that reads thoughts but does not write them, and one that has no place for any."""
    talk = Conversation(
        messages=(
            Message(role="user", content="one"),
            Message(role="assistant", content="two", thought="hm"),
        )
    )
    silent = _template(PLAIN, marks=("<think>", "</think>"))
    with pytest.raises(RecordRefusedError, match="thought"):
        silent.render(talk)
    assert "hm" not in silent.render(talk, thinking=Thinking.OFF).text
    rendered = _template(PLAIN).render(talk)
    assert rendered.text.endswith("assistant\n<think>\nhm\n</think>\n\ntwo<|im_end|>\n")
    assert rendered.text[rendered.spans[0].start :].startswith("<think>\nhm")


def test_a_tokenizer_without_an_end_token_is_refused_where_a_template_writes_it():
    with pytest.raises(UsageError, match="eos_token, which the tokenizer lacks"):
        Template(library_template("mistral"), SpecialTokens(bos="<s>", eos=None))
    Template(library_template("chatml"), SpecialTokens(bos=None, eos=None))


def test_a_source_can_be_pickled_and_its_digest_is_that_of_its_text():
    source = library_template("glm4")
    assert pickle.loads(pickle.dumps(source)) == source
    folder = Path(llm_data.templates.__file__).parent / "library"
    parts = [folder / "tools" / "glm4.jinja", folder / "glm4.jinja"]
    assert source.digest == sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()


def test_a_template_cannot_reach_python():
    for text in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(UsageError, match=r"unsafe|not safely callable|access to attribute"):
            _template(text + GOOD)
