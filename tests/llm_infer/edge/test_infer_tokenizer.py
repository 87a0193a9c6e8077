"""Tokenizers and templates read without transformers, against transformers' own."""

import json
import random
import shutil

import pytest
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, processors
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from chat_templates import CHATML, SPACED, TIGHT
from chat_tokenizers import KINDS, random_text
from llm_infer.edge import tokenizer_file
from llm_infer.edge.tokenizer import FileTokenizer, HfTokenizer, read_tokenizer
from llm_infer.errors import InferError
from tiny_lm import edit_json

ROWS = 9999
"""Of a model with room for every tokenizer here."""

TEXTS = (
    "",
    " ",
    "  two spaces, <s>a start</s> and\n\nlines ",
    "don't 12345 naïve 日本語 🙂👩\u200d👧 \x00\ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<|tool|>x <|tool|> y<|odd|>z",
    *(random_text(random.Random(number)) for number in range(12)),
)
MESSAGES = (
    {"role": "system", "content": "Be <brief> & \"kind\"."},
    {"role": "user", "content": "  hello\n"},
    {"role": "assistant", "content": "world", "reasoning": "why"},
    {"role": "user", "content": "日本語?", "name": None},
)  # fmt: skip
# What templates of well-known models do: Llama 3.1's date, Qwen3's namespace and slices, Mistral's
# checks, gpt-oss's macros, JSON of tools, loops with `break` and `continue`.
BUSY = """
{%- set ns = namespace(last=-1, seen=dict(a=1)) %}
{%- macro line(role, text) %}<|im_start|>{{ role }}
{{ text | trim }}{{ eos_token }}
{% endmacro %}
{{- bos_token }}{{ strftime_now("%d %b")[:0] }}{{ unk_token is defined }}{{ image_token }}
    {% for m in messages[::-1] %}
    {% if m.role == "user" %}
        {% set ns.last = loop.index0 %}
        {% break %}
    {% endif %}
{% endfor %}
{% for m in messages %}
  {%- if m.role == "system" %}{{ m | tojson(indent=2) }}{% continue %}{% endif %}
  {%- if m.name is defined or m.content is none %}{{ raise_exception("no names") }}{% endif %}
{{ line(m.role, m.content) }}{{ m.thinking }}{{ m.reasoning_content }}
{%- endfor %}
{% if tools is not none %}{{ tools | tojson }}{% endif %}{{ documents is none }}{{ ns.last }}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def saved(folder, core, *, cls=PreTrainedTokenizerFast, config=None, model_type="qwen3", **tokens):
    """A folder as `save_pretrained` leaves it, for a model of some type."""
    cls(tokenizer_object=core, **tokens).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config:
        edit_json(folder / "tokenizer_config.json", **config)
    return folder


def ours(folder):
    found = tokenizer_file.read(folder)
    assert found is not None
    return FileTokenizer(found, num_rows=ROWS)


def assert_alike(folder):
    """Equal tokens, texts, sizes and ends."""
    mine, theirs = ours(folder), HfTokenizer(AutoTokenizer.from_pretrained(folder), num_rows=ROWS)
    for text in TEXTS:
        assert mine.encode(text) == theirs.encode(text)
    for number in range(20):
        drawn = random.Random(number).choices(range(theirs.vocab_size), k=12)
        assert mine.decode(drawn) == theirs.decode(drawn)
    assert (mine.vocab_size, mine.end_token) == (theirs.vocab_size, theirs.end_token)
    assert json.loads(mine.serialized()) == json.loads(theirs.serialized())
    return mine, theirs


def started(core):
    """A copy that puts <s> before a text and </s> behind it."""
    core = Tokenizer.from_str(core.to_str())
    marks = [(mark, core.token_to_id(mark)) for mark in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=marks
    )
    return core


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_gives_transformers_tokens_and_texts(tmp_path, kind):
    core = started(KINDS[kind]())
    core.enable_truncation(4)
    core.enable_padding(length=9)
    assert_alike(saved(tmp_path / "a", core, bos_token="<s>", eos_token="</s>"))
    core.add_tokens([AddedToken("<|odd|>", lstrip=True, normalized=False), "jumps over"])
    own = AddedToken("<|tool|>", rstrip=True, special=False)
    more = {"pad_token": "<pad>", "extra_special_tokens": ["<|x|>", own]}
    assert_alike(saved(tmp_path / "b", core, eos_token="<|im_end|>", **more))


@pytest.mark.parametrize(
    "config",
    [
        {"add_bos_token": False, "add_eos_token": True},
        {"split_special_tokens": True},
        {"image_token": "<|image|>", "additional_special_tokens": ["<|im_start|>", "<|new|>"]},
        {"extra_special_tokens": {"audio_token": "<|audio|>"}, "unk_token": None},
        {"eos_token": {"__type": "AddedToken", "content": "<|new|>", "lstrip": True}},
        {"added_tokens_decoder": {"900": {"content": "<|late|>", "special": False}}},
        {"clean_up_tokenization_spaces": True, "model_max_length": 3},
    ],
    ids=lambda config: ",".join(config),
)
def test_what_the_configuration_says_is_done(tmp_path, config):
    core = started(KINDS["byte-level"]())
    assert_alike(saved(tmp_path, core, bos_token="<s>", config=config))


def test_classes_that_build_their_tokenizer_are_read_where_the_file_says_the_same(tmp_path):
    """Each as its class saves it, then with one part changed: that transformers must read."""
    bytes_, pieces = KINDS["byte-level"]().to_str(), KINDS["sentencepiece-first"]().to_str()
    for cls, text in (
        (Qwen2Tokenizer, bytes_),
        (GPT2Tokenizer, bytes_),
        (LlamaTokenizer, pieces),
        (GemmaTokenizer, pieces),
    ):
        model = json.loads(text)["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        folder = tmp_path / cls.__name__
        cls(vocab=model["vocab"], merges=merges).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        assert_alike(folder)
        changed = shutil.copytree(folder, tmp_path / f"{cls.__name__}-changed")
        edit_json(changed / "tokenizer.json", normalizer={"type": "Lowercase"})
        assert tokenizer_file.read(changed) is None
        assert isinstance(read_tokenizer(changed, num_rows=ROWS), HfTokenizer)


@pytest.mark.parametrize("is_read_here", [True, False])
def test_an_added_token_beyond_the_models_rows_is_refused_where_a_prompt_has_it(
    tmp_path, is_read_here
):
    """A padding token beside a model that was never given a row for it."""
    folder = saved(tmp_path, KINDS["byte-level"](), chat_template="{{ messages[0].content }}")
    number = len(AutoTokenizer.from_pretrained(folder))
    added = AutoTokenizer.from_pretrained(folder)
    added.add_special_tokens({"pad_token": "<pad>"})
    added.save_pretrained(folder)
    tokenizer = read_tokenizer(folder, num_rows=number)
    assert isinstance(tokenizer, FileTokenizer)
    if not is_read_here:
        tokenizer = HfTokenizer(AutoTokenizer.from_pretrained(folder), num_rows=number)
    assert tokenizer.vocab_size == number
    assert max(tokenizer.encode("as ever")) < number
    refused = rf"token '<pad>' \({number}\) has no row in the model's embedding of {number}"
    with pytest.raises(InferError, match=refused):
        tokenizer.encode("as <pad> ever")
    with pytest.raises(InferError, match=refused):
        tokenizer.encode_chat([{"role": "user", "content": "as <pad> ever"}], None)
    with pytest.raises(InferError, match=f"the tokenizer has .* tokens, the model {number // 2}"):
        read_tokenizer(folder, num_rows=number // 2)


@pytest.mark.parametrize(
    ("change", "model_type"),
    [
        ({"tokenizer_class": "CohereTokenizer"}, "cohere"),
        ({"tokenizer_class": None}, "qwen3"),
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, "qwen3"),
        ({}, "qwen2"),
    ],
    ids=["class", "no-class", "own-code", "corrected"],
)
def test_what_only_transformers_knows_is_left_to_it(tmp_path, change, model_type):
    core = Tokenizer.from_str(KINDS["unigram"]().to_str())
    folder = saved(tmp_path, core, eos_token="</s>", config=change, model_type=model_type)
    assert tokenizer_file.read(folder) is None


def test_a_byte_level_file_that_says_it_is_llamas_is_read_as_it_is(tmp_path):
    config = {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}
    folder = saved(tmp_path, KINDS["byte-level"](), config=config, model_type="llama")
    assert_alike(folder)


@pytest.mark.parametrize("template", [CHATML, TIGHT, SPACED, BUSY])
def test_conversations_are_written_as_transformers_writes_them(tmp_path, template):
    names = {"image_token": "<|image|>"}
    marks = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    folder = saved(tmp_path, KINDS["byte-level"](), config=names, chat_template=template, **marks)
    mine, theirs = assert_alike(folder)
    for count in range(1, len(MESSAGES) + 1):
        wanted = theirs.encode_chat(MESSAGES[:count], None)
        assert mine.encode_chat(MESSAGES[:count], None) == wanted
        assert mine.encode_chat(MESSAGES[:count], TIGHT) == theirs.encode_chat(
            MESSAGES[:count], TIGHT
        )
    if template == BUSY:
        tools = [{"type": "function", "function": {"name": "ü<b>", "parameters": {}}}]
        wanted = theirs.encode_chat(MESSAGES, None, tools=tools)
        assert mine.encode_chat(MESSAGES, None, tools=tools) == wanted
        assert "ü<b>" in mine.decode(wanted)
    else:
        for one in (mine, theirs):
            with pytest.raises(InferError, match="says nothing of tools"):
                one.encode_chat(MESSAGES, None, tools=[{}])


def test_templates_are_told_more_names(tmp_path):
    """As Qwen3's, which closes an empty thought when it is told so."""
    template = CHATML + "{% if enable_thinking is false %}<think>{{ eos_token }}</think>{% endif %}"
    folder = saved(tmp_path, KINDS["byte-level"](), chat_template=template, eos_token="<|im_end|>")
    mine, theirs = assert_alike(folder)
    plain = theirs.encode_chat(MESSAGES, None)
    for variables in ({"enable_thinking": False}, {"enable_thinking": False, "eos_token": "é"}):
        wanted = theirs.encode_chat(MESSAGES, None, variables=variables)
        assert mine.encode_chat(MESSAGES, None, variables=variables) == wanted
        assert len(wanted) > len(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_marks_of_calls_can_be_kept_among_the_special_tokens(tmp_path, kind):
    """What is told apart by hand: transformers' texts with all special tokens, and with none."""
    core = KINDS[kind]()
    core.add_special_tokens(["[TOOL_CALLS]", "<|x|>"])
    mine, theirs = assert_alike(saved(tmp_path, core, eos_token="</s>"))
    tokens = [
        core.token_to_id("[TOOL_CALLS]"),
        *core.encode(" [hello]", add_special_tokens=False).ids,
    ]
    others = [core.token_to_id("<|x|>"), core.token_to_id("</s>")]
    wanted = AutoTokenizer.from_pretrained(tmp_path).decode(tokens, skip_special_tokens=False)
    assert "[TOOL_CALLS]" in wanted
    for one in (mine, theirs):
        assert one.decode([*tokens, *others], keeps=("[TOOL_CALLS]", "[ARGS]")) == wanted
        assert one.decode([*tokens, *others]) == theirs.decode(tokens[1:])


def test_templates_are_found_where_transformers_finds_them(tmp_path):
    folder = saved(tmp_path, KINDS["byte-level"](), eos_token="</s>")
    assert not ours(folder).has_chat_template
    named = [{"name": "default", "template": CHATML}, {"name": "rag", "template": TIGHT}]
    for make in (
        lambda: edit_json(folder / "tokenizer_config.json", chat_template=SPACED),
        lambda: edit_json(folder / "tokenizer_config.json", chat_template=named),
        lambda: (folder / "chat_template.jinja").write_text(TIGHT),
        lambda: (folder / "additional_chat_templates").mkdir(),
        lambda: (folder / "additional_chat_templates" / "rag.jinja").write_text(SPACED),
    ):
        make()
        theirs = HfTokenizer(AutoTokenizer.from_pretrained(folder), num_rows=ROWS)
        for given in (None, "rag"):
            wanted = theirs.encode_chat(MESSAGES, given)
            assert ours(folder).encode_chat(MESSAGES, given) == wanted


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{% if %}", "Expected an expression"),
        ("{% set n = namespace(__class__=1) %}", "__class__"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ messages.append(1) }}", "append"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(tmp_path, template, said):
    _assert_refused(tmp_path, template, said, TemplateError)


# DeepSeek R1's adds an object, as calls have it, to a text.
@pytest.mark.parametrize(
    ("template", "said"),
    [("{{ 'a' + messages[0] }}", "TypeError"), ("{{ 1 // 0 }}", "ZeroDivisionError")],
)
def test_a_template_that_fails_in_python_says_how(tmp_path, template, said):
    _assert_refused(tmp_path, template, said, (TypeError, ZeroDivisionError))


def _assert_refused(tmp_path, template, said, theirs):
    folder = saved(tmp_path, KINDS["byte-level"](), eos_token="</s>")
    with pytest.raises(InferError, match="chat template: ") as caught:
        ours(folder).encode_chat(MESSAGES, template)
    assert said in str(caught.value)
    loaded = HfTokenizer(AutoTokenizer.from_pretrained(folder), num_rows=ROWS)
    with pytest.raises(InferError, match="chat template: "):
        loaded.encode_chat(MESSAGES, template)
    with pytest.raises(theirs):
        AutoTokenizer.from_pretrained(folder).apply_chat_template(
            list(MESSAGES), chat_template=template, tokenize=False
        )


def test_broken_files_are_named(tmp_path):
    folder = saved(tmp_path, KINDS["byte-level"](), eos_token="</s>")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InferError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer_file.read(folder)
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(InferError, match=r"tokenizer_config\.json: found list, want a JSON object"):
        tokenizer_file.read(folder)
