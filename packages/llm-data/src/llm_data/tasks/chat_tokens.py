"""Rendered conversations as token ids, with the learned part of each as token positions."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from llm_data.backends.backend import Backend, BackendName, BackendSpec
from llm_data.backends.hf import load_tokenizer
from llm_data.records import Reason, RecordRefusedError
from llm_data.tasks.byte_lengths import ByteLengths, Ids, adds_prefix
from llm_data.templates import Rendered

# What may stand before a continued text so that the tokenizer's own prefix (the "▁" of
# SentencePiece) falls on it and not on the text. The first that stays a token of its own is taken.
_LEADS = ("\n", "a", ".")


class TokenSpan(NamedTuple):
    """Token positions of a stretch of an assistant's answer; `message` is its turn's number."""

    start: int
    end: int
    message: int


class ChatTokens(NamedTuple):
    """A conversation's ids and, in order and disjoint, what an assistant says in it."""

    ids: Ids
    spans: tuple[TokenSpan, ...]


class _Piece(NamedTuple):
    """A stretch of the text tokenized by itself; its first `lead` characters and the tokens before
    `first` are not part of it. `base` is the number of tokens before it.
    """

    start: int
    end: int
    encoding: Encoding
    lead: int
    first: int
    base: int


class ChatTokenizer:
    """Finds which tokens are learned, exactly. Special tokens are only those written in a text.

    A text is tokenized whole, as inference tokenizes it. Where a token would lie across the border
    of an answer, the text is cut there and the parts are tokenized apart: at the start of an answer
    that is what a model sees too. Parts that do not decode to the same text are refused.
    """

    def __init__(self, reference: Tokenizer, fast: Backend | None = None) -> None:
        self.reference = reference
        self._fast = fast
        self._lengths = ByteLengths.of(reference)
        self._leads = _LEADS if adds_prefix(reference) else ("",)

    @classmethod
    def load(cls, file: Path, backend: BackendSpec) -> "ChatTokenizer":
        """From tokenizer.json, with a second backend that gives the same ids."""
        fast = None
        if backend.name is not BackendName.HF:
            # What a post-processor would add around a text does not belong here.
            fast = replace(backend, before=(), after=()).load(file)
        reference = load_tokenizer(file)
        # It may also take spaces out of the offsets, and hide that a token lies across a border.
        reference.post_processor = None
        return cls(reference, fast)

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if self._fast is not None:
            return [np.asarray(ids, np.int32) for ids in self._fast.encode(texts)]
        encodings = self.reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode(self, texts: Sequence[str]) -> list[Ids | Encoding]:
        """The texts, tokenized whole: what `align` needs of each."""
        if self._lengths is not None:
            return [*self.ids(texts)]
        return [*self.reference.encode_batch(list(texts), add_special_tokens=False)]

    def align(self, rendered: Rendered, encoded: Ids | Encoding) -> ChatTokens:
        """The tokens of a text that `encode` made; RecordRefusedError if no cut is clean."""
        borders = [border for start, end, _ in rendered.spans for border in (start, end)]
        if isinstance(encoded, np.ndarray):
            assert self._lengths is not None
            places = self._lengths.places(rendered.text, encoded, borders)
            if places is not None:
                return ChatTokens(
                    encoded, _spans(rendered, dict(zip(borders, places, strict=True)))
                )
            encoded = self._whole(rendered.text)
        size = len(rendered.text)
        tokens = {border: token_at(encoded, border, size=size) for border in borders}
        positions = {border: token for border, token in tokens.items() if token is not None}
        if len(positions) < len(tokens):
            return self._cut(rendered, encoded, at=())
        return ChatTokens(np.array(encoded.ids, np.int32), _spans(rendered, positions))

    def cut(self, rendered: Rendered, *, at: Sequence[int]) -> ChatTokens:
        """As `align`, cut at the characters `at` and wherever else a token lies across."""
        return self._cut(rendered, self._whole(rendered.text), at=at)

    def _whole(self, text: str) -> Encoding:
        return self.reference.encode(text, add_special_tokens=False)

    def _cut(self, rendered: Rendered, whole: Encoding, *, at: Sequence[int]) -> ChatTokens:
        borders = {border for start, end, _ in rendered.spans for border in (start, end)}
        cuts = set(at)
        while True:
            pieces = self._pieces(rendered.text, sorted(cuts))
            found = {border: _position(pieces, border) for border in borders}
            positions = {border: token for border, token in found.items() if token is not None}
            if len(positions) == len(borders):
                break
            # Every round cuts at one border more, and at a cut a token cannot lie across.
            cuts |= borders - positions.keys()
        ids = [number for piece in pieces for number in piece.encoding.ids[piece.first :]]
        self._check_same_text(ids, whole.ids)
        return ChatTokens(np.array(ids, np.int32), _spans(rendered, positions))

    def _pieces(self, text: str, cuts: Sequence[int]) -> list[_Piece]:
        pieces: list[_Piece] = []
        base = 0
        borders = [0, *(cut for cut in cuts if 0 < cut < len(text)), len(text)]
        for start, end in pairwise(borders):
            piece = self._piece(text[start:end], start=start, base=base)
            pieces.append(piece)
            base += len(piece.encoding) - piece.first
        return pieces

    def _piece(self, text: str, *, start: int, base: int) -> _Piece:
        end = start + len(text)
        for lead in self._leads if start else ("",):
            encoding = self._whole(lead + text)
            first = token_at(encoding, len(lead), size=len(lead) + len(text)) if lead else 0
            if first is not None:
                return _Piece(start, end, encoding, len(lead), first, base)
        raise RecordRefusedError(
            Reason.UNPROVEN_MASK,
            f"the tokenizer joins what comes before an answer to {text[:20]!r}, and cannot "
            "tokenize that by itself; want a template with a special token or a line break there",
        )

    def _check_same_text(self, found: list[int], wanted: list[int]) -> None:
        texts = self.reference.decode_batch([found, wanted], skip_special_tokens=False)
        if texts[0] != texts[1]:
            pairs = enumerate(zip(*texts, strict=False))
            at = next((place for place, (one, other) in pairs if one != other), 0)
            raise RecordRefusedError(
                Reason.UNPROVEN_MASK,
                "a token lies across the border of an answer, and cut there the text would be "
                f"{texts[0][max(at - 10, 0) : at + 10]!r}, want "
                f"{texts[1][max(at - 10, 0) : at + 10]!r}",
            )


def token_at(encoding: Encoding, border: int, *, size: int) -> int | None:
    """The first token at or after a character of a text of `size`; None if one lies across."""
    for character in range(border, size):
        token = encoding.char_to_token(character)
        # A character without a token, such as a space that the tokenizer drops: look further.
        if token is not None:
            start, _ = encoding.token_to_chars(token) or (character, character)
            return token if start >= border else None
    return len(encoding)


def _spans(rendered: Rendered, positions: dict[int, int]) -> tuple[TokenSpan, ...]:
    return tuple(
        TokenSpan(positions[start], positions[end], message)
        for start, end, message in rendered.spans
    )


def _position(pieces: Sequence[_Piece], border: int) -> int | None:
    """The first token at or after a character, counted through all pieces."""
    for piece in pieces:
        if piece.start == border:
            return piece.base
        if piece.start < border < piece.end:
            size = piece.end - piece.start + piece.lead
            inside = token_at(piece.encoding, border - piece.start + piece.lead, size=size)
            return None if inside is None else piece.base + inside - piece.first
    return pieces[-1].base + len(pieces[-1].encoding) - pieces[-1].first
