"""What is learned is exactly what an assistant says and its end token, for every template.

The expected texts are written by hand, a line a family, from the formats that the models' authors
and MindSpeed-LLM's templates.json document.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from llm_data.edge.console.template_report import PLACEHOLDERS, show_template
from llm_data.messages import Conversation, Message, ToolCall
from llm_data.records import Reason, RecordRefusedError
from llm_data.templates import Template, Thinking, library_names, library_template

REACT = 'Action: get_weather\nAction Input: {"city": "Oslo"}'
QWEN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
GLM4 = 'get_weather\n{"city": "Oslo"}'
GLM4_MOE = (
    "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>"
)
DSML = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>"
)
HARMONY = ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Oslo"}'


class Said(NamedTuple):
    """How a model says things: before its words, after them, a call with its end, a thought.

    `last` ends a last answer where that is another token.
    """

    before: str
    end: str
    call: str
    thought: tuple[str, str] | None = None
    last: str | None = None


EOS = PLACEHOLDERS.eos or ""
IN_WORDS = Said("", EOS, REACT + EOS)
AFTER_SPACE = Said(" ", EOS, " " + REACT + EOS)
CHATML = Said("", "<|im_end|>", REACT + "<|im_end|>")
GLM = Said("\n", "<|user|>", GLM4 + "<|observation|>")
THINK = ("<think>\n", "\n</think>\n\n")
EXPECTED = {
    **dict.fromkeys(
        [
            "alpaca",
            "baichuan2",
            "chatglm2",
            "cpm",
            "deepseek2",
            "deepseek2-lite",
            "deepseek3",
            "default",
            "empty",
            "hunyuan",
            "minicpm3",
            "trl",
        ],
        IN_WORDS,
    ),
    **dict.fromkeys(["llama2", "mistral", "mixtral"], AFTER_SPACE),
    **dict.fromkeys(
        ["chatml", "chatml_de", "intern2", "plm", "qwen", "qwen_math_r1", "qwen_r1"], CHATML
    ),
    **dict.fromkeys(["chatglm3", "chatglm3_system", "glm4"], GLM),
    "qwen_lf": Said("", "<|im_end|>", QWEN + "<|im_end|>"),
    "qwen3": Said("", "<|im_end|>", QWEN + "<|im_end|>", THINK),
    "bailing_mini": Said("", "<|role_end|>", QWEN + "<|role_end|>"),
    "llama3": Said("", "<|eot_id|>", REACT + "<|eot_id|>"),
    "gemma": Said("", "<end_of_turn>", REACT + "<end_of_turn>"),
    "magistral": Said("", EOS, REACT + EOS, THINK),
    "glm4_moe": Said("\n", "<|user|>", GLM4_MOE + "<|observation|>", ("\n<think>", "</think>")),
    "deepseek4": Said(
        "", "<｜end▁of▁sentence｜>", DSML + "<｜end▁of▁sentence｜>", ("", "</think>")
    ),
    "gpt_oss": Said(
        "",
        "<|end|>",
        HARMONY + "<|call|>",
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        "<|return|>",
    ),
}
# What stands before an answer without a thought, unlearned, where a template has a place for one.
EMPTY = {
    "qwen3": "<think>\n\n</think>\n\n",
    "magistral": "<think>\n\n</think>\n\n",
    "glm4_moe": "<|assistant|>\n<think></think>",
    "deepseek4": "<｜Assistant｜></think>",
    "gpt_oss": "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
}
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
)


def _talk(*turns, tools=()):
    messages = []
    for role, content, *thought in turns:
        messages.append(
            Message(role=role, content=content, thought=thought[0] if thought else None)
        )
    return Conversation(messages=tuple(messages), tools=tools)


def _learned(name, talk, thinking=Thinking.KEEP):
    rendered = Template(library_template(name), PLACEHOLDERS).render(talk, thinking=thinking)
    return rendered.text, [rendered.text[span.start : span.end] for span in rendered.spans]


def test_every_template_is_in_the_table():
    assert sorted(EXPECTED) == list(library_names())
    assert len(EXPECTED) == 34


@pytest.mark.parametrize("name", EXPECTED)
def test_plain_answers_and_their_end_tokens_are_learned(name):
    before, end, _, _, last = EXPECTED[name]
    last = last or end
    single = _talk(("user", "one"), ("assistant", "two"))
    assert _learned(name, single)[1] == [f"{before}two{last}"]
    turns = ("user", "one"), ("assistant", " two\n"), ("user", "<|x|>"), ("assistant", "four")
    wanted = [f"{before} two\n{end}", f"{before}four{last}"]
    assert _learned(name, _talk(*turns))[1] == wanted
    text, learned = _learned(name, _talk(("system", "Be kind."), *turns))
    assert learned == wanted
    assert text.count("Be kind.") == 1


@pytest.mark.parametrize("name", EXPECTED)
def test_calls_of_tools_are_learned_and_their_results_are_not(name):
    before, end, call, _, last = EXPECTED[name]
    talk = Conversation(
        messages=(
            Message(role="user", content="warm?"),
            Message(
                role="assistant",
                tool_calls=(ToolCall(name="get_weather", arguments={"city": "Oslo"}, id="0"),),
            ),
            Message(role="tool", content="31 °C", tool_call_id="0", name="get_weather"),
            Message(role="assistant", content="very"),
        ),
        tools=TOOLS,
    )
    text, learned = _learned(name, talk)
    assert learned == [call, f"{before}very{last or end}"]
    assert text.count("31 °C") == 1


@pytest.mark.parametrize("name", EXPECTED)
def test_thoughts_follow_the_choice_of_thinking(name):
    """ON adds a missing thought and learns it, OFF strips, KEEP keeps; two answers, one thought."""
    before, end, _, thought, last = EXPECTED[name]
    last = last or end
    talk = _talk(("user", "one"), ("assistant", "two", "hm"), ("user", "q"), ("assistant", "four"))
    keep, on, off = (
        _learned(name, talk, choice) for choice in (Thinking.KEEP, Thinking.ON, Thinking.OFF)
    )
    plain = [f"{before}two{end}", f"{before}four{last}"]
    assert off[1] == plain
    if thought is None:
        inside = f"{before}<think>\nhm\n</think>\n\ntwo{end}"
        assert keep[1] == on[1] == [inside, plain[1]]
        return
    opening, closing = thought
    inside = f"{opening}hm{closing}{before}two{end}"
    assert keep[1] == [inside, plain[1]]
    assert on[1] == [inside, f"{opening}{closing}{before}four{last}"]
    assert keep[0].count(EMPTY[name]) == 1
    assert off[0].count(EMPTY[name]) == 2
    assert "hm" not in off[0]


@pytest.mark.parametrize("name", [name for name in EXPECTED if EXPECTED[name].thought])
def test_a_thought_inside_the_words_is_found(name):
    """Also what MindSpeed-LLM's data has: the thought in the content, between its marks."""
    apart = _talk(("user", "one"), ("assistant", "two", "hm"))
    inside = _talk(("user", "one"), ("assistant", "<think>\nhm\n</think>\n\ntwo"))
    for thinking in Thinking:
        assert _learned(name, apart, thinking) == _learned(name, inside, thinking)


def test_a_changed_choice_of_thinking_changes_the_text():
    """MindSpeed-LLM caches a template by its name, with the first choice of thinking in it."""
    talk = _talk(("user", "one"), ("assistant", "two"))
    template = Template(library_template("qwen3"), PLACEHOLDERS)
    learned = []
    for thinking in (Thinking.OFF, Thinking.ON, Thinking.OFF):
        rendered = template.render(talk, thinking=thinking)
        learned.append(rendered.text[rendered.spans[0].start :].startswith("<think>"))
    assert learned == [False, True, False]


def test_several_results_stand_in_one_turn_of_qwen3():
    """As in Qwen3's own template: one user turn, a <tool_response> for each result."""
    call = ToolCall(name="get_weather", arguments={"city": "Oslo"})
    talk = Conversation(
        messages=(
            Message(role="user", content="both?"),
            Message(role="assistant", tool_calls=(call, call)),
            Message(role="tool", content="31"),
            Message(role="tool", content="32"),
            Message(role="assistant", content="warm"),
        ),
        tools=TOOLS,
    )
    text, learned = _learned("qwen3", talk)
    assert learned[0] == f"{QWEN}\n{QWEN}<|im_end|>"
    assert (
        "<|im_start|>user\n<tool_response>\n31\n</tool_response>\n<tool_response>\n32\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    ) in text


@pytest.mark.parametrize("name", EXPECTED)
def test_a_system_message_inside_a_conversation_is_refused(name):
    talk = _talk(("user", "one"), ("system", "hush"), ("assistant", "two"))
    with pytest.raises(RecordRefusedError, match="after the first message") as refused:
        _learned(name, talk)
    assert refused.value.reason is Reason.NOT_IN_TEMPLATE


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_template_shows_is_what_was_reviewed(name):
    """`golden/` holds reviewed texts, ⟦learned⟧; show_template writes them."""
    golden = Path(__file__).parent / "golden" / f"{name}.txt"
    assert show_template(library_template(name)) == golden.read_text("utf-8")
