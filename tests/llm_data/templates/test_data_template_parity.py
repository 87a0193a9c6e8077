"""Texts and marks are those of transformers, for the library and for templates of its kind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llm_data.messages import Conversation, Message, ToolCall
from llm_data.templates import (
    SpecialTokens,
    Template,
    TemplateSource,
    Thinking,
    library_names,
    library_template,
)

SPECIAL = SpecialTokens(bos="<s>", eos="</s>", pad="<pad>")
TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": 'Finds "words" & <tags> in a Wörterbuch',
        "parameters": {
            "type": "object",
            "properties": {
                "word": {"type": "string", "description": "What to find"},
                "items": {"type": "array", "items": {"type": "integer"}},
                "order": {"type": "string", "enum": ["up", "down"]},
            },
            "required": ["word"],
        },
    },
}


def _turn(role, content, **more):
    return Message(role=role, content=content, **more)


TALKS = {
    "single": Conversation(
        messages=(_turn("user", 'Hi <there> & "you"\n'), _turn("assistant", " Grüße! "))
    ),
    "multi": Conversation(
        messages=(
            _turn("user", "one"),
            _turn("assistant", "two"),
            _turn("user", "three"),
            _turn("assistant", ""),
        )
    ),
    "system": Conversation(
        messages=(_turn("system", "Be kind."), _turn("user", "one"), _turn("assistant", "two"))
    ),
    "thinking": Conversation(
        messages=(
            _turn("user", "one"),
            _turn("assistant", "two", thought="hm\nhm"),
            _turn("user", "three"),
            _turn("assistant", "four"),
        )
    ),
    "tools": Conversation(
        messages=(
            _turn("user", "one"),
            _turn(
                "assistant",
                "",
                tool_calls=(
                    ToolCall(name="lookup", arguments={"word": "Öl", "items": [1, 2]}, id="a"),
                ),
            ),
            _turn("tool", '{"found": true}', tool_call_id="a", name="lookup"),
            _turn("assistant", "yes"),
        ),
        tools=(TOOL,),
    ),
}

# Templates as Hugging Face's tokenizers have them, without marks, in the style of each family.
FOREIGN = {
    file.stem: file.read_text("utf-8")
    for file in sorted((Path(__file__).parent / "foreign").glob("*.jinja"))
}


def _foreign(name):
    text = FOREIGN[name]
    marks = ("<think>\n", "\n</think>\n\n") if "reasoning_content" in text else None
    return TemplateSource(
        name=name, text=text, marks=marks, tools="own" if "tool_call" in text else ""
    )


SOURCES = {
    **{name: library_template(name) for name in library_names()},
    **{f"hf-{name}": _foreign(name) for name in FOREIGN},
}


def _theirs(source, talk, thinking, **more):
    """transformers' text and marks for the dictionaries a user of transformers would hand over."""
    messages = []
    for message in talk.messages:
        turn = {"role": message.role, "content": message.content}
        thought = None if thinking is Thinking.OFF else message.thought
        if message.role == "assistant" and source.marks:
            if thinking is Thinking.ON and thought is None:
                thought = ""
            if thought is not None:
                turn["reasoning_content"] = thought
        elif thought is not None:
            turn["content"] = f"<think>\n{thought}\n</think>\n\n{message.content}"
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in message.tool_calls
            ]
        if message.name:
            turn["name"] = message.name
        messages.append(turn)
    if thinking is not Thinking.KEEP:
        more["enable_thinking"] = thinking is Thinking.ON
    texts, marks = render_jinja_template(
        conversations=[messages],
        tools=[dict(tool) for tool in talk.tools] or None,
        chat_template=source.text,
        return_assistant_tokens_mask="endgeneration" in source.text,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **more,
    )
    return texts[0], marks[0] if marks else None


@pytest.mark.parametrize("name", SOURCES)
def test_text_and_marks_are_those_of_transformers(name):
    source = SOURCES[name]
    template = Template(source, SPECIAL)
    compared = 0
    for kind, talk in TALKS.items():
        if kind == "tools" and not template.takes_tools:
            continue
        if kind == "system" and name in ("hf-llama2", "hf-gemma"):
            continue
        for thinking in Thinking if kind == "thinking" else [Thinking.KEEP]:
            ours = template.render(talk, thinking=thinking)
            text, marks = _theirs(source, talk, thinking)
            assert ours.text == text
            if marks is not None:
                assert [span[:2] for span in ours.spans] == marks
            compared += 1
            prompt = Conversation(messages=talk.messages[:-1], tools=talk.tools)
            waiting = template.render(prompt, thinking=thinking, add_generation_prompt=True)
            assert waiting.text == _theirs(source, prompt, thinking, add_generation_prompt=True)[0]
    assert compared >= 5


@pytest.mark.parametrize("name", library_names())
def test_a_learned_answer_follows_what_a_model_sees_at_inference(name):
    """The text before an answer is the text for the turns before it with a generation prompt."""
    source = library_template(name)
    template = Template(source, SPECIAL)
    for kind in ("single", "multi", "system", "thinking"):
        talk = TALKS[kind]
        whole = template.render(talk)
        for span in whole.spans:
            before = Conversation(messages=talk.messages[: span.message])
            has_thought = talk.messages[span.message].thought is not None
            thinking = Thinking.ON if has_thought else Thinking.OFF
            if kind == "thinking" or name == "glm4_moe":
                # Earlier turns are rewritten with --thinking off, so only the last words are equal.
                prompt = template.render(before, thinking=thinking, add_generation_prompt=True).text
                tail = prompt[len(template.render(before, thinking=thinking).text) :]
                assert whole.text[: span.start].endswith(tail)
            else:
                prompt = template.render(before, thinking=thinking, add_generation_prompt=True).text
                assert whole.text[: span.start] == prompt


def test_untagged_templates_learn_what_the_same_template_with_marks_learns():
    """The derived spans of ChatML equal transformers' marks for the text with marks in place."""
    plain = FOREIGN["chatml"]
    answer = "{{ '<|im_start|>assistant\n' }}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    marked = plain.replace(
        "{{ '<|im_start|>' + m['role']",
        "{% if m['role'] == 'assistant' %}" + answer + "{% endgeneration %}{{ '\n' }}{% else %}"
        "{{ '<|im_start|>' + m['role']",
    ).replace("'\\n' }}{% endfor %}", "'\\n' }}{% endif %}{% endfor %}")
    source = replace(_foreign("chatml"), text=marked)
    for kind in ("single", "multi", "system"):
        ours = Template(_foreign("chatml"), SPECIAL).render(TALKS[kind])
        text, marks = _theirs(source, TALKS[kind], Thinking.KEEP)
        assert (ours.text, [span[:2] for span in ours.spans]) == (text, marks)


def test_json_is_written_as_transformers_writes_it():
    text = (
        "{{ {'a': '<&é', 'b': [1]} | tojson }}|{{ {'a': 1} | tojson(indent=2) }}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
        "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    source = TemplateSource(name="json", text=text)
    ours = Template(source, SPECIAL).render(TALKS["single"]).text
    assert ours.startswith(json.dumps({"a": "<&é", "b": [1]}, ensure_ascii=False) + "|{\n")
    assert ours == _theirs(source, TALKS["single"], Thinking.KEEP)[0]
