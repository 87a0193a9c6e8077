import hashlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer

from llm_data.errors import UsageError
from llm_data.tokenizer import (
    UNSTABLE_KEYS,
    choose_dtype,
    token_id,
    token_text,
    tokenizer_digest,
    vocabulary_size,
)

PIECES = {"[UNK]": 0, "a": 1, "b": 2, "ab": 3}
MODELS = {
    "bpe": models.BPE(vocab=PIECES, merges=[("a", "b")]),
    "wordpiece": models.WordPiece(vocab=PIECES),
    "wordlevel": models.WordLevel(vocab=PIECES, unk_token="[UNK]"),
    "unigram": models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=0),
}


@pytest.mark.parametrize("vocab_size", [1, 257, 65499, 65500, 65501, 65536, 151_936])
def test_auto_dtype_is_megatrons_choice(vocab_size):
    assert choose_dtype("auto", vocab_size=vocab_size) == DType.optimal_dtype(vocab_size).__name__


def test_asked_for_dtype_must_hold_every_id():
    assert choose_dtype("uint16", vocab_size=65536) == "uint16"
    assert choose_dtype("int32", vocab_size=10) == "int32"
    with pytest.raises(UsageError, match="below 65536, the vocabulary has 65537"):
        choose_dtype("uint16", vocab_size=65537)


@pytest.mark.parametrize("kind", MODELS)
def test_vocabulary_is_what_tokenizers_says(kind):
    tokenizer = Tokenizer(MODELS[kind])
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    body = json.loads(tokenizer.to_str())
    assert vocabulary_size(body) == max(tokenizer.get_vocab().values()) + 1 == 5
    for token in (*PIECES, "<eos>", "missing"):
        assert token_id(body, token) == tokenizer.token_to_id(token)


def test_digest_survives_saving_by_transformers(tokenizer, tmp_path):
    before = json.loads((tokenizer / "tokenizer.json").read_text())
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded("cut", truncation=True, max_length=1, padding="max_length")
    loaded.save_pretrained(tmp_path)
    after = json.loads((tmp_path / "tokenizer.json").read_text())
    assert after != before, "nothing was rewritten, so this test proves nothing"
    assert tokenizer_digest(after) == tokenizer_digest(before)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
)


@settings(deadline=None, max_examples=40)
@given(body=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON))
@example(
    body={"vocab": {"\x7f\x1f\n": 1, "é\U0001f600": 2, "\uffff": 3, '"\\/': 4}, "f": [1e-5, 1e16]}
)
@example(body={"merges": [["a", "b"], ["\x00", "é"]], "old": ["a b"], "mixed": {"a": 1, "b": True}})
def test_digest_is_that_of_pythons_own_json(body):
    """The contract's definition, spelled with the standard library."""
    kept = {key: value for key, value in body.items() if key not in UNSTABLE_KEYS}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert tokenizer_digest(body) == hashlib.sha256(text.encode()).hexdigest()


def test_digest_moves_with_the_vocabulary(tokenizer):
    body = json.loads((tokenizer / "tokenizer.json").read_text())
    before = tokenizer_digest(body)
    body["model"]["vocab"]["new"] = 9999
    assert tokenizer_digest(body) != before


@pytest.mark.parametrize(
    ("entry", "text"),
    [("</s>", "</s>"), ({"content": "</s>", "lstrip": False}, "</s>"), (None, None)],
)
def test_token_text_reads_both_spellings(entry, text):
    assert token_text(entry) == text
