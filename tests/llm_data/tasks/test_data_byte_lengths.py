"""Places of tokens from their lengths alone."""

import random
import unicodedata

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from chat_tokenizers import KINDS, SPECIAL, random_text
from llm_data.tasks.byte_lengths import ByteLengths
from llm_data.tasks.chat_tokens import token_at


def _byte_level() -> Tokenizer:
    """One to be changed."""
    return Tokenizer.from_str(KINDS["byte-level"]().to_str())


def _text(rng: random.Random) -> str:
    return "".join(random_text(rng) + rng.choice(SPECIAL) for _ in range(4))


def test_places_are_those_of_the_library_s_offsets():
    tokenizer = KINDS["byte-level"]()
    lengths = ByteLengths.of(tokenizer)
    assert lengths is not None
    found = 0
    for seed in range(400):
        rng = random.Random(seed)
        text = _text(rng)
        encoding = tokenizer.encode(text)
        borders = sorted(rng.sample(range(len(text) + 1), rng.randint(1, 3)))
        tokens = [token_at(encoding, border, size=len(text)) for border in borders]
        places = lengths.places(text, np.array(encoding.ids, np.int32), borders)
        assert places == (None if None in tokens else tokens)
        found += places is not None
    assert 50 < found < 350


def test_a_text_that_the_tokenizer_composes_is_left_to_offsets():
    tokenizer = KINDS["byte-level"]()
    lengths = ByteLengths.of(tokenizer)
    assert lengths is not None
    for text, wanted in (("naïve", [0]), (unicodedata.normalize("NFD", "naïve"), None)):
        ids = np.array(tokenizer.encode(text).ids, np.int32)
        assert lengths.places(text, ids, [0]) == wanted


def test_a_token_that_swallows_spaces_is_left_to_offsets():
    tokenizer = _byte_level()
    tokenizer.add_special_tokens([AddedToken("<sep>", lstrip=True)])
    lengths = ByteLengths.of(tokenizer)
    assert lengths is not None
    for text, wanted in (("fox<sep>fox", [1]), ("fox <sep>fox", None)):
        ids = np.array(tokenizer.encode(text).ids, np.int32)
        assert len(ids) == 3
        assert lengths.places(text, ids, [text.index("<sep>")]) == wanted


def test_a_tokenizer_without_a_token_for_every_byte_is_left_to_offsets():
    """Bytes that it does not know are dropped without a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["fox"], trainers.BpeTrainer(show_progress=False))
    lengths = ByteLengths.of(tokenizer)
    assert lengths is not None
    for text, wanted in (("foxfox", [1]), ("foxéfox", None)):
        ids = np.array(tokenizer.encode(text).ids, np.int32)
        assert len(ids) == 2 or tokenizer.decode(ids) == "foxfox"
        assert lengths.places(text, ids, [3]) == wanted


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte-level"])
def test_tokens_of_other_tokenizers_are_not_bytes(kind):
    assert ByteLengths.of(KINDS[kind]()) is None


@pytest.mark.parametrize("what", ["normalizer", "prefix", "decoder"])
def test_a_tokenizer_that_changes_the_text_is_left_to_offsets(what):
    tokenizer = _byte_level()
    if what == "normalizer":
        tokenizer.normalizer = normalizers.Lowercase()
    elif what == "prefix":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        tokenizer.decoder = decoders.Fuse()
    assert ByteLengths.of(tokenizer) is None
