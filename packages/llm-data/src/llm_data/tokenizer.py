"""Facts about a tokenizer: its digest, its vocabulary, its end-of-text token."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import orjson

from llm_data.errors import UsageError

TokenDtype = Literal["uint16", "int32"]

UNSTABLE_KEYS = ("version", "truncation", "padding")

# Megatron's bound (`DType.optimal_dtype`), a little under 2**16.
UINT16_VOCAB = 65500


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What a run needs to know; `vocab_size` is the largest id plus one.

    `pad_id` is the padding token's, or the end-of-text token's where there is none.
    """

    file: str
    digest: str
    vocab_size: int
    eos_token: str | None
    eos_id: int | None
    pad_id: int | None = None


def tokenizer_digest(body: Mapping[str, object]) -> str:
    """SHA-256 of tokenizer.json without the keys that loading and saving rewrites."""
    kept = {key: value for key, value in body.items() if key not in UNSTABLE_KEYS}
    return hashlib.sha256(_canonical(kept)).hexdigest()


def choose_dtype(wanted: Literal["auto", "uint16", "int32"], *, vocab_size: int) -> TokenDtype:
    """The element type: Megatron's own rule, or the one asked for if every id fits."""
    if wanted == "auto":
        return "uint16" if vocab_size < UINT16_VOCAB else "int32"
    if wanted == "uint16" and vocab_size > 1 << 16:
        raise UsageError(f"--dtype uint16 holds ids below 65536, the vocabulary has {vocab_size}")
    return wanted


def vocabulary_size(body: Mapping[str, object]) -> int:
    """Largest id in tokenizer.json plus one: the model's pieces and the added tokens."""
    vocab = _model_vocab(body)
    if isinstance(vocab, Mapping):
        ids = [number for number in vocab.values() if isinstance(number, int)]
    else:
        ids = [len(vocab) - 1]
    ids += _added_ids(body).values()
    return max(ids, default=-1) + 1


def token_id(body: Mapping[str, object], token: str) -> int | None:
    """The id of a token that is in the vocabulary as it stands."""
    added = _added_ids(body)
    if token in added:
        return added[token]
    vocab = _model_vocab(body)
    if isinstance(vocab, Mapping):
        found = vocab.get(token)
        return found if isinstance(found, int) else None
    pieces = (cast("list[object]", item)[0] for item in vocab if isinstance(item, list) and item)
    return next((number for number, piece in enumerate(pieces) if piece == token), None)


def token_text(entry: object) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with its content."""
    if isinstance(entry, dict):
        entry = cast("dict[str, object]", entry).get("content")
    return entry if isinstance(entry, str) else None


def _canonical(value: object) -> bytes:
    """Compact JSON with sorted keys. orjson writes the large tables, several times faster; where
    floats may stand it is left out, because it spells some of them differently.
    """
    if _is_plain_table(value):
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if isinstance(value, dict):
        body = cast("dict[str, object]", value)
        items = (orjson.dumps(key) + b":" + _canonical(body[key]) for key in sorted(body))
        return b"{" + b",".join(items) + b"}"
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _is_plain_table(value: object) -> bool:
    """Strings to integers, a list of strings, or a list of lists of strings."""
    if isinstance(value, dict):
        return {type(item) for item in cast("dict[str, object]", value).values()} == {int}
    if not isinstance(value, list):
        return False
    items = cast("list[object]", value)
    kinds = {type(item) for item in items}
    if kinds == {list}:
        kinds = {type(each) for item in cast("list[list[object]]", items) for each in item}
    return kinds == {str}


def _model_vocab(body: Mapping[str, object]) -> Mapping[str, object] | Sequence[object]:
    """Piece to id, or for Unigram a list of [piece, score] in the order of ids."""
    model = body.get("model")
    vocab = cast("dict[str, object]", model).get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return cast("dict[str, object]", vocab)
    return cast("list[object]", vocab) if isinstance(vocab, list) else {}


def _added_ids(body: Mapping[str, object]) -> dict[str, int]:
    added = body.get("added_tokens")
    entries = cast("list[dict[str, object]]", added) if isinstance(added, list) else []
    pairs = ((entry.get("content"), entry.get("id")) for entry in entries)
    return {text: n for text, n in pairs if isinstance(text, str) and isinstance(n, int)}
