"""Templates found by name, in a tokenizer's folder, in files of users."""

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llm_data.edge.console.template_report import list_templates, marked
from llm_data.edge.template_files import find_template, read_special_tokens
from llm_data.errors import FormatError, UsageError
from llm_data.messages import Conversation, Message
from llm_data.templates import SpecialTokens, Template, library_names, library_template

SPECIAL = SpecialTokens(bos="<s>", eos="</s>")
EOS = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "special": True}
TEXT = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TALK = Conversation(
    messages=(
        Message(role="system", content="S"),
        Message(role="user", content="Q1"),
        Message(role="assistant", content="A1"),
        Message(role="user", content="Q2"),
        Message(role="assistant", content="A2"),
    )
)
# Entries in the fields of MindSpeed-LLM's templates.json; what its own code writes for TALK, with
# the tokens it learns in ⟦ ⟧ (its labels put an end token nowhere or beside the text: here it is
# the text's own, and white space behind it is not learned).
ENTRIES = {
    "plain": (
        {"format_user": {"slots": ["U:{{content}}\nA:"]}, "format_separator": {"slots": ["\n"]}},
        "SU:Q1\nA:⟦A1</s>⟧\nU:Q2\nA:⟦A2</s>⟧",
    ),
    "stop": (
        {
            "format_user": {"slots": ["<u>{{content}}<e>\n<a>"]},
            "format_system": {"slots": ["<y>{{content}}<e>\n"]},
            "format_prefix": {"slots": [["bos_token"]]},
            "stop_words": ["<e>"],
            "replace_eos": True,
        },
        "<s><y>S<e>\n<u>Q1<e>\n<a>⟦A1<e>⟧<u>Q2<e>\n<a>⟦A2<e>⟧",
    ),
    "tokens": (
        {
            "format_user": {
                "slots": [{"token": "<|user|>"}, "\n{{content}}", {"token": "<|bot|>"}]
            },
            "format_assistant": {"slots": ["\n{{content}}"]},
            "stop_words": ["<|user|>", "<|seen|>"],
            "efficient_eos": True,
        },
        "S<|user|>\nQ1<|bot|>⟦\nA1<|user|>⟧\nQ2<|bot|>⟦\nA2<|user|>⟧",
    ),
    "slot": (
        {
            "format_user": {"slots": ["[{{idx}}]{{content}}>"]},
            "format_assistant": {"slots": ["{{content}}<end>\n"]},
            "default_system": "D",
        },
        "S[0]Q1>⟦A1<end>⟧\n[1]Q2>⟦A2<end>⟧\n",
    ),
    "first": (
        {
            "format_user": {"slots": [["bos_token"], "[I]{{content}}[/I]"]},
            "format_system": {"slots": ["<<{{content}}>>"]},
            "template_class": "Llama2Template",
        },
        "<s>[I]<<S>>Q1[/I]⟦A1</s>⟧<s>[I]Q2[/I]⟦A2</s>⟧",
    ),
    "think": (
        {
            "format_user": {"slots": ["<u>{{content}}<a>"]},
            "thought_words": ["<t>", "</t>"],
            "template_class": "ReasoningTemplate",
        },
        "S<u>Q1<a><t></t>⟦A1</s>⟧<u>Q2<a><t></t>⟦A2</s>⟧",
    ),
}


def _tokenizer(folder, **config):
    config = {"bos_token": "<s>", "eos_token": EOS, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_library_name_wins_and_an_unknown_one_names_the_choices(tmp_path):
    assert find_template("qwen3", tokenizer=tmp_path) == library_template("qwen3")
    with pytest.raises(UsageError, match=r"did you mean 'qwen3'.*chatglm2.*trl"):
        find_template("qwen33", tokenizer=tmp_path)


def test_hf_is_the_template_that_transformers_loads_from_the_same_folder(tmp_path):
    """As a string, as a list of named ones, and as a file of its own, which wins."""
    other = TEXT.replace("'<|'", "'<!'")
    for kind, found in (
        ("string", TEXT),
        ("list", [{"name": "tool_use", "template": other}, {"name": "default", "template": TEXT}]),
        ("file", other),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        backend.save(str(folder / "tokenizer.json"))
        _tokenizer(folder, chat_template=found)
        if kind == "file":
            (folder / "chat_template.jinja").write_text(TEXT)
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)
        source = find_template("hf", tokenizer=folder)
        assert source.text == TEXT
        special = read_special_tokens(folder / "tokenizer.json")
        assert special == SpecialTokens(bos="<s>", eos="</s>")
        turns = [{"role": m.role, "content": m.content} for m in TALK.messages]
        wanted = theirs.apply_chat_template(turns, tokenize=False)
        assert Template(source, special).render(TALK).text == wanted


def test_hf_without_a_template_and_without_a_default_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no chat_template\.jinja and no chat_template in"):
        find_template("hf", tokenizer=_tokenizer(tmp_path))
    _tokenizer(tmp_path, chat_template=[{"name": "rag", "template": TEXT}])
    with pytest.raises(UsageError, match="has rag, want one called 'default'"):
        find_template("hf", tokenizer=tmp_path)


def test_special_tokens_come_from_both_files(tmp_path):
    _tokenizer(tmp_path, eos_token=None)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<x>", "eos_token": "<e>"}')
    assert read_special_tokens(tmp_path) == SpecialTokens(bos="<s>", eos="<e>")


def test_a_jinja_file_is_taken_as_it_is(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(TEXT)
    source = find_template(str(file), tokenizer=tmp_path)
    assert (source.name, source.text) == ("own.jinja", TEXT)
    file.write_bytes(b"a\xff")
    with pytest.raises(FormatError, match="not UTF-8 at byte 1"):
        find_template(str(file), tokenizer=tmp_path)
    with pytest.raises(UsageError, match=r"only a \.json file holds entries"):
        find_template(f"{file}:x", tokenizer=tmp_path)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_of_a_templates_json_writes_what_mindspeed_llm_writes(name, tmp_path):
    entry, wanted = ENTRIES[name]
    file = tmp_path / "templates.json"
    file.write_text(json.dumps([{"name": "other"}, {"name": name, **entry}]))
    source = find_template(f"{file}:{name}", tokenizer=tmp_path)
    assert marked(Template(source, SPECIAL).render(TALK)) == wanted


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            {"format_usr": {"slots": ["x"]}},
            "unknown field 'format_usr'; did you mean 'format_user'",
        ),
        ({"format_user": "x"}, "'x', want an object with a list of slots"),
        ({"format_user": {"slots": [["pad_token"]]}}, "slot \\['pad_token'\\], want a text"),
        ({"format_assistant": {"slots": ["x"]}}, "format_assistant has no {{content}}"),
        ({"format_tools": {"tool_format": "xml"}}, "tool_format 'xml', want one of .*glm4"),
        ({"template_class": "DeepSeek4Template"}, "template_class 'DeepSeek4Template', want"),
        ({"replace_eos": True}, "replace_eos wants stop_words"),
        ({"thought_words": ["<t>"]}, "thought_words has 1 texts, want two"),
        ({"stop_words": [1]}, "want a list of texts"),
    ],
)
def test_an_entry_that_cannot_be_written_is_refused_with_its_place(entry, problem, tmp_path):
    file = tmp_path / "templates.json"
    file.write_text(json.dumps([{"name": "mine", **entry}]))
    with pytest.raises(UsageError, match=problem) as refused:
        find_template(str(file), tokenizer=tmp_path)
    assert f"{file}: mine" in str(refused.value)


def test_a_file_of_several_entries_wants_a_name(tmp_path):
    file = tmp_path / "templates.json"
    file.write_text(json.dumps([{"name": "one"}, {"name": "two"}]))
    with pytest.raises(UsageError, match=r"it holds one, two; want .*templates\.json:NAME"):
        find_template(str(file), tokenizer=tmp_path)
    with pytest.raises(UsageError, match="it holds one, two; did you mean 'two'"):
        find_template(f"{file}:tow", tokenizer=tmp_path)
    file.write_text("[1]")
    with pytest.raises(FormatError, match="entry 1 is not an object"):
        find_template(str(file), tokenizer=tmp_path)


def test_the_list_has_every_name_with_its_end_tokens():
    rows = list_templates()
    assert [row.name for row in rows] == list(library_names())
    assert all(row.ends and row.about and row.tools for row in rows)
    thinking = {row.name for row in rows if row.has_thinking}
    assert thinking == {"deepseek4", "glm4_moe", "gpt_oss", "magistral", "qwen3"}
