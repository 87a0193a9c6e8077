"""Where each token of a byte-level tokenizer stands, from nothing but the ids.

A token of such a tokenizer is a run of bytes; so adding up its tokens' lengths finds any place in a
text. That needs no offsets, which cost a tokenizer time and which a fast one does not have.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, normalizers

Ids = NDArray[np.int32]


class ByteLengths:
    """How many bytes of text each id stands for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocab = tokenizer.get_vocab(with_added_tokens=False)
        added = tokenizer.get_added_tokens_decoder()
        size = max([*vocab.values(), *added], default=-1) + 1
        self._lengths = np.zeros(size, np.int64)
        # Byte-level pieces are written with one character a byte; added tokens are plain text.
        for piece, number in vocab.items():
            self._lengths[number] = len(piece)
        for number, token in added.items():
            self._lengths[number] = len(token.content.encode())
        self._composes = tokenizer.normalizer is not None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ByteLengths | None":
        """The lengths, or None for a tokenizer whose tokens are not just the bytes of the text."""
        plain = tokenizer.normalizer is None or isinstance(tokenizer.normalizer, normalizers.NFC)
        is_bytes = isinstance(tokenizer.decoder, decoders.ByteLevel)
        return cls(tokenizer) if plain and is_bytes and not adds_prefix(tokenizer) else None

    def places(self, text: str, ids: Ids, borders: Sequence[int]) -> list[int] | None:
        """The first token at or after each of some characters in rising order.

        None if one lies across, or if the tokens are not the text byte by byte.
        """
        if self._composes and not unicodedata.is_normalized("NFC", text):
            return None
        ends = np.cumsum(self._lengths[ids])
        wanted = _bytes_before(text, [*borders, len(text)])
        if not len(ends) or ends[-1] != wanted[-1]:
            return None
        starts = np.concatenate(([0], ends))
        found = np.searchsorted(starts, wanted)
        return None if np.any(starts[found] != wanted) else found[:-1].tolist()


def adds_prefix(tokenizer: Tokenizer) -> bool:
    """Whether the first word of a text is not tokenized as the same letters further on."""
    text = "a"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is not None:
        text = "".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return text != "a"


def _bytes_before(text: str, characters: Sequence[int]) -> Sequence[int]:
    """How many bytes of UTF-8 come before each of some characters, in rising order."""
    if text.isascii():
        return characters
    total, last = 0, 0
    found: list[int] = []
    for character in characters:
        total += len(text[last:character].encode())
        last = character
        found.append(total)
    return found
