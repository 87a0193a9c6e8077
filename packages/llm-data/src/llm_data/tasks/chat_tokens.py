"""Rendered conversations as token ids, with the learned part of each as token positions."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from llm_data.errors import DataError
from llm_data.records import Reason, RecordRefusedError
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

    ids: list[int]
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


def load_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of tokenizer.json, without its truncation and padding."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the Rust side raises bare Exception
        raise DataError(f"{file}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class ChatTokenizer:
    """Finds which tokens are learned, exactly.

    A text is tokenized whole, as inference tokenizes it. Where a token would lie across the border
    of an answer, the text is cut there and the parts are tokenized apart: at the start of an answer
    that is what a model sees too. Parts that do not decode to the same text are refused.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._leads = _LEADS if _adds_prefix(tokenizer) else ("",)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The texts, tokenized whole; special tokens are only those written in them."""
        return self._tokenizer.encode_batch(texts, add_special_tokens=False)

    def align(self, rendered: Rendered, encoding: Encoding) -> ChatTokens:
        """The tokens of a text that `encode` made; RecordRefusedError if no cut is clean."""
        size = len(rendered.text)
        spans: list[TokenSpan] = []
        for start, end, message in rendered.spans:
            first, last = token_at(encoding, start, size=size), token_at(encoding, end, size=size)
            if first is None or last is None:
                return self.cut(rendered, encoding, at=())
            spans.append(TokenSpan(first, last, message))
        return ChatTokens(encoding.ids, tuple(spans))

    def cut(self, rendered: Rendered, encoding: Encoding, *, at: Sequence[int]) -> ChatTokens:
        """As `align`, cut at the characters `at` and wherever else a token lies across."""
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
        self._check_same_text(ids, encoding.ids)
        spans = (
            TokenSpan(positions[start], positions[end], message)
            for start, end, message in rendered.spans
        )
        return ChatTokens(ids, tuple(spans))

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
            encoding = self._tokenizer.encode(lead + text, add_special_tokens=False)
            first = token_at(encoding, len(lead), size=len(lead) + len(text)) if lead else 0
            if first is not None:
                return _Piece(start, end, encoding, len(lead), first, base)
        raise RecordRefusedError(
            Reason.UNPROVEN_MASK,
            f"the tokenizer joins what comes before an answer to {text[:20]!r}, and cannot "
            "tokenize that by itself; want a template with a special token or a line break there",
        )

    def _check_same_text(self, found: list[int], wanted: list[int]) -> None:
        texts = self._tokenizer.decode_batch([found, wanted], skip_special_tokens=False)
        if texts[0] != texts[1]:
            at = next(
                (i for i, pair in enumerate(zip(*texts, strict=False)) if len({*pair}) > 1), 0
            )
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


def _adds_prefix(tokenizer: Tokenizer) -> bool:
    """Whether the first word of a text is not tokenized as the same letters further on."""
    text = "a"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is not None:
        text = "".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return text != "a"
