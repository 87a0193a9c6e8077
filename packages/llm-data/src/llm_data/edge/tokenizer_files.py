"""Tokenizer folders and files, as Hugging Face lays them out."""

from pathlib import Path
from typing import cast

import orjson

from llm_data.errors import DataError, FormatError, UsageError, listed
from llm_data.formats.manifest_parts import Tokenizer
from llm_data.tokenizer import (
    TokenizerFacts,
    token_id,
    token_text,
    tokenizer_digest,
    vocabulary_size,
)

# Where special tokens are named, first found wins.
_NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def find_tokenizer_file(path: Path) -> Path:
    """`path` itself, or the tokenizer.json in it."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(
            f"{path}: no such tokenizer; want a folder with tokenizer.json, or the file"
        )
    file = path / "tokenizer.json"
    if file.is_file():
        return file
    names = sorted(entry.name for entry in path.iterdir())
    hint = ""
    if "tokenizer.model" in names:
        hint = (
            "; transformers converts tokenizer.model: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    raise DataError(f"{path}: no tokenizer.json; found {listed(names)}{hint}")


def read_tokenizer_facts(path: Path, *, eos_token: str | None = None) -> TokenizerFacts:
    """Digest, vocabulary and end-of-text token; `eos_token` overrides what the folder says."""
    file = find_tokenizer_file(path)
    body = _read_object(file)
    if "model" not in body:
        raise FormatError(f"{file}: no key 'model'; found {listed(body)}; want a tokenizer.json")
    eos_token = eos_token or _named_token(file.parent, "eos_token")
    eos_id = None if eos_token is None else token_id(body, eos_token)
    if eos_token is not None and eos_id is None:
        raise DataError(f"{file}: the end-of-text token {eos_token!r} is not in the vocabulary")
    pad_token = _named_token(file.parent, "pad_token")
    pad_id = None if pad_token is None else token_id(body, pad_token)
    return TokenizerFacts(
        file=file.name,
        digest=tokenizer_digest(body),
        vocab_size=vocabulary_size(body),
        eos_token=eos_token,
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
    )


def manifest_entry(facts: TokenizerFacts) -> Tokenizer:
    """The tokenizer as manifests name it."""
    return Tokenizer(
        digest=facts.digest,
        vocab_size=facts.vocab_size,
        eos_token=facts.eos_token,
        eos_id=facts.eos_id,
        file=facts.file,
    )


def _named_token(folder: Path, kind: str) -> str | None:
    for name in _NAMING_FILES:
        if (folder / name).is_file():
            token = token_text(_read_object(folder / name).get(kind))
            if token is not None:
                return token
    return None


def _read_object(file: Path) -> dict[str, object]:
    try:
        body: object = orjson.loads(file.read_bytes())
    except ValueError as error:
        raise FormatError(f"{file}: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise FormatError(f"{file}: want a JSON object")
    return cast("dict[str, object]", body)
