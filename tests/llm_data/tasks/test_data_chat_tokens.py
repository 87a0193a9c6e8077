"""Which tokens of a rendered conversation are learned."""

import random

import pytest
from tokenizers import Tokenizer, processors
from transformers.utils.chat_template_utils import render_jinja_template

from chat_templates import CHATML, TIGHT, of_transformers
from chat_tokenizers import KINDS, LOSSLESS, SPECIAL, random_text
from llm_data.backends.backend import BackendSpec
from llm_data.messages import Conversation, Message
from llm_data.records import Reason, RecordRefusedError
from llm_data.tasks.chat_tokens import ChatTokenizer, ChatTokens, token_at
from llm_data.templates import (
    Rendered,
    Span,
    SpecialTokens,
    Template,
    library_names,
    library_template,
)


def _conversation(rng: random.Random) -> list[dict[str, str]]:
    turns = rng.randint(1, 4)
    roles = ["system"] * rng.randint(0, 1) + ["user", "assistant"] * turns
    return [{"role": role, "content": random_text(rng).strip() or "x"} for role in roles]


def _aligned(tokenizer, text: str, *spans: tuple[int, int]) -> ChatTokens:
    chat = ChatTokenizer(tokenizer)
    rendered = Rendered(text, tuple(Span(*span, n) for n, span in enumerate(spans)))
    return chat.align(rendered, chat.encode([text])[0])


@pytest.mark.parametrize(
    ("kind", "template"),
    [(kind, TIGHT) for kind in KINDS]
    + [(kind, CHATML) for kind in KINDS if kind not in ("unigram", "word-piece")],
)
def test_ids_and_mask_are_those_of_transformers(kind, template):
    tokenizer = KINDS[kind]()
    theirs = of_transformers(tokenizer, template)
    chat = ChatTokenizer(tokenizer)
    for seed in range(60):
        messages = _conversation(random.Random(seed))
        wanted = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        texts, indices = render_jinja_template(
            conversations=[messages], chat_template=template, return_assistant_tokens_mask=True
        )
        rendered = Rendered(texts[0], tuple(Span(*pair, 0) for pair in indices[0]))
        found = chat.align(rendered, chat.encode(texts)[0])
        mask = [0] * len(found.ids)
        for start, end, _ in found.spans:
            mask[start:end] = [1] * (end - start)
        assert found.ids.tolist() == wanted["input_ids"]
        assert mask == wanted["assistant_masks"]
        assert 0 < sum(mask) < len(mask)


@pytest.mark.parametrize("kind", [*LOSSLESS, "unigram"])
def test_decoding_the_tokens_up_to_a_border_gives_the_text_up_to_it(kind):
    tokenizer = KINDS[kind]()
    cut = 0
    for seed in range(120):
        rng = random.Random(seed)
        text = "".join(random_text(rng) for _ in range(3)).lstrip() + "ends here"
        a, b, c, d = sorted(rng.sample(range(len(text) + 1), 4))
        tokens = _aligned(tokenizer, text, (a, b), (c, d))
        cut += tokens.ids.tolist() != tokenizer.encode(text).ids
        for span, borders in zip(tokens.spans, ((a, b), (c, d)), strict=True):
            for position, border in zip(span[:2], borders, strict=True):
                assert tokenizer.decode(tokens.ids[:position]) == text[:border]
    # Borders at any character mostly lie within a token.
    assert cut > 60


@pytest.mark.parametrize("kind", [*LOSSLESS, "unigram"])
def test_before_a_cut_answer_stand_the_tokens_that_inference_would_give(kind):
    """The prompt alone, tokenized whole; and the answer is not tokenized as a first word."""
    tokenizer = KINDS[kind]()
    prompt, answer = "question the quick brown f", "ox jumps hello"
    text = prompt + answer
    assert token_at(tokenizer.encode(text), len(prompt), size=len(text)) is None
    tokens = _aligned(tokenizer, text, (len(prompt), len(text)))
    first = tokens.spans[0].start
    assert tokens.ids[:first].tolist() == tokenizer.encode(prompt).ids
    # In all these vocabularies a word's beginning is told from its inside by a mark at its front.
    assert tokenizer.id_to_token(tokens.ids[first])[0] == "o"


def test_a_prefix_is_not_added_to_the_text_after_a_cut():
    """Llama 2's format with the space before the answer outside the answer."""
    tokenizer = KINDS["sentencepiece-prepend"]()
    text = "<s>[INST] hello [/INST] answer</s><s>[INST] question [/INST] brown</s>"
    starts = [text.index("answer"), text.index("brown")]
    spans = [(start, text.index("</s>", start) + 4) for start in starts]
    tokens = _aligned(tokenizer, text, *spans)
    pieces = [tokenizer.id_to_token(number) for number in tokens.ids]
    said = ["".join(pieces[start:end]) for start, end, _ in tokens.spans]
    assert said == ["answer</s>", "brown</s>"]
    assert "".join(pieces) == (
        "<s>▁[INST]▁hello▁[/INST]▁answer</s><s>▁[INST]▁question▁[/INST]▁brown</s>"
    )


def test_a_cut_that_would_change_the_text_is_refused():
    """WordPiece writes the inside of a word otherwise than its beginning."""
    text = "hello brown"
    with pytest.raises(RecordRefusedError) as refusal:
        _aligned(KINDS["word-piece"](), text, (8, 11))
    assert refusal.value.reason is Reason.UNPROVEN_MASK
    assert "want 'hello brown'" in refusal.value.detail


def test_an_answer_that_begins_with_a_dropped_space_begins_with_the_token_after_it():
    """WordPiece has no token for a space; transformers leaves the whole answer unmasked there."""
    tokenizer = KINDS["word-piece"]()
    text = "hello<|im_start|> brown fox</s>"
    tokens = _aligned(tokenizer, text, (text.index(" brown"), len(text)))
    start, end, _ = tokens.spans[0]
    learned = [tokenizer.id_to_token(number) for number in tokens.ids[start:end]]
    assert learned == ["brown", "fox", "</s>"]


def test_special_tokens_are_only_those_written_in_the_text(tmp_path):
    """A post-processor that adds its own, a truncation and a padding change nothing."""
    tokenizer = Tokenizer.from_str(KINDS["byte-level"]().to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, SPECIAL.index(name)) for name in SPECIAL]
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    chat = ChatTokenizer.load(tmp_path / "tokenizer.json", BackendSpec(before=(1,), after=(2,)))
    text = "<s>hello the quick brown fox</s>"
    assert [tokenizer.id_to_token(number) for number in chat.ids([text])[0]] == [
        *("<s>", "hello", "Ġthe", "Ġquick", "Ġbrown", "Ġfox", "</s>")
    ]


def test_offsets_that_leave_out_spaces_hide_no_token_across_a_border(tmp_path):
    """A byte-level post-processor trims them; the text is not composed, so that offsets decide."""
    tokenizer = Tokenizer.from_str(KINDS["byte-level"]().to_str())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    chat = ChatTokenizer.load(tmp_path / "tokenizer.json", BackendSpec())
    text = "nai\u0308ve fox"
    rendered = Rendered(text, (Span(text.index("fox"), len(text), 0),))
    tokens = chat.align(rendered, chat.encode([text])[0])
    pieces = [tokenizer.id_to_token(number) for number in tokens.ids]
    assert pieces[-2:] == ["Ġ", "fox"]
    assert tokens.spans[0][:2] == (len(pieces) - 1, len(pieces))


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece-prepend"])
@pytest.mark.parametrize("name", library_names())
def test_what_is_learned_in_every_template_is_the_answers_and_their_ends(kind, name):
    """Read back from the ids. None of the templates' marks is a token of these vocabularies, so
    that most borders lie within a word.
    """
    said = ("answer the fox", "日本語 brown")
    turns = [
        Message(role=role, content=text)
        for answer in said
        for role, text in (("user", "question hello"), ("assistant", answer))
    ]
    template = Template(library_template(name), SpecialTokens(bos="<s>", eos="</s>"))
    rendered = template.render(Conversation(messages=tuple(turns)))
    chat = ChatTokenizer(KINDS[kind]())
    tokens = chat.align(rendered, chat.encode([rendered.text])[0])
    assert len(tokens.spans) == len(said)
    for span, answer in zip(tokens.spans, said, strict=True):
        before, after = (
            chat.reference.decode(tokens.ids[:end].tolist(), skip_special_tokens=False)
            for end in span[:2]
        )
        # This vocabulary writes a space for the mark that DeepSeek's end token holds.
        ends = [end.replace("▁", " ") if kind != "byte-level" else end for end in template.ends]
        assert after[len(before) :].strip() in [f"{answer}{end}".strip() for end in ends]
