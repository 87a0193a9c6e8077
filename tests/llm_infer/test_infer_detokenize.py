from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_infer.detokenize import Detokenizer


@cache
def _byte_bpe():
    """A byte-level BPE tokenizer in which many characters are split over tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from tiny_lm import TEXT

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([TEXT], trainer)
    return core


@cache
def _metaspace():
    """A SentencePiece-like tokenizer: a leading space that decoding drops, bytes as a fallback."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["▁", "▁the", "▁fox", "x", "y"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {name: number for number, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def _stream(core, ids):
    detokenizer = Detokenizer(lambda tokens: core.decode(list(tokens)))
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(st.text(max_size=40))
def test_pieces_joined_are_the_text_for_any_unicode(text):
    core = _byte_bpe()
    assert "".join(_stream(core, core.encode(text).ids)) == text


@given(st.lists(st.integers(0, 299), max_size=40))
def test_pieces_joined_are_the_decoded_tokens_for_any_tokens(ids):
    core = _byte_bpe()
    assert "".join(_stream(core, ids)) == core.decode(ids)


@given(st.lists(st.sampled_from([" the", " fox", "你好", "🙂", "x", "y"]), max_size=12))
def test_spaces_and_byte_fallback_come_out_as_decoded_at_once(words):
    core = _metaspace()
    ids = core.encode("".join(words)).ids
    assert "".join(_stream(core, ids)) == core.decode(ids)


@pytest.mark.parametrize("text", ["🙂🙃", "né à Köln", "你好,世界"])
def test_no_piece_shows_half_a_character(text):
    core = _byte_bpe()
    pieces = _stream(core, core.encode(text).ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_is_not_held_longer_than_needed():
    core = _byte_bpe()
    ids = core.encode("plain ascii text").ids
    pieces = _stream(core, ids)
    assert all(pieces[:-1])
    assert pieces[-1] == ""
