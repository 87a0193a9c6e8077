"""Token datasets (`.bin`, `.idx`, manifest) as documents of token ids, by the on-disk contract.

tests/contracts/token_dataset/SPEC.md is that contract, and says what a reader must refuse.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llm_eval.documents import Document
from llm_eval.errors import EvalError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_SUFFIXES = (".idx", ".bin")
# Codes of the index; those that are no integers are refused by name.
_INTEGERS = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
# What a manifest must say, and of it what is used here.
_FORMAT, _VERSION = "token-dataset", 1


def stem_of(path: Path) -> Path | None:
    """The dataset's path without suffix when `path` names one: its stem or one of its files."""
    if path.suffix in _SUFFIXES:
        return path.with_suffix("")
    index = path.with_name(f"{path.name}.idx")
    return path if index.is_file() and not path.is_dir() else None


def read_documents(stem: Path) -> Iterator[Document]:
    """Each document as its token ids in decimal, with a space between two."""
    index_path, bin_path = (stem.with_name(stem.name + suffix) for suffix in _SUFFIXES)
    for path in (index_path, bin_path):
        if not path.is_file():
            raise EvalError(f"{path}: missing; a token dataset is a .bin and an .idx file")
    kind, starts = _boundaries(index_path)
    num_bytes = bin_path.stat().st_size
    wanted = int(starts[-1]) * kind.itemsize
    if num_bytes != wanted:
        raise EvalError(f"{bin_path}: {num_bytes} bytes, {index_path.name} wants {wanted}")
    tokens = np.memmap(bin_path, kind, "r") if wanted else np.zeros(0, kind)
    for number, (start, end) in enumerate(pairwise(starts.tolist())):
        yield Document(f"{stem.name}:{number}", " ".join(map(str, tokens[start:end].tolist())))


def check_tokenizer(stem: Path, model: Path) -> None:
    """Raise unless the manifest names the model's own tokenizer; Megatron writes no manifest."""
    manifest = stem.with_name(f"{stem.name}.json")
    own = model / "tokenizer.json"
    if not manifest.is_file() or not own.is_file():
        return
    recorded, found = _tokenizer_digest(manifest), _digest(own)
    if recorded != found:
        raise EvalError(
            f"{manifest}: its tokens are of the tokenizer {recorded[:12]}…, {own} is "
            f"{found[:12]}…; score the model that the dataset was made for, or the text itself"
        )


def _boundaries(path: Path) -> tuple[np.dtype[Any], Any]:
    """Type of a token, and the token at which each document starts, then the end: D + 1."""
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise EvalError(f"{path}: {len(data)} bytes, want a header of {_HEADER.size} (magic first)")
    magic, version, code, num_sequences, num_bounds = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise EvalError(f"{path}: magic {magic!r}, want {_MAGIC!r}")
    if version != _VERSION:
        raise EvalError(f"{path}: version {version}, want {_VERSION}")
    if code not in _INTEGERS:
        found = f"{_FLOATS[code]}, want an integer" if code in _FLOATS else f"dtype code {code}"
        raise EvalError(f"{path}: {found}; integers are {sorted(_INTEGERS)}")
    wanted = _HEADER.size + 12 * num_sequences + 8 * num_bounds
    if len(data) != wanted or num_bounds < 1:
        raise EvalError(f"{path}: {len(data)} bytes, want {wanted} by its header")
    kind = np.dtype(_INTEGERS[code])
    offset = _HEADER.size
    lengths = np.frombuffer(data, "<i4", num_sequences, offset).astype(np.int64)
    pointers = np.frombuffer(data, "<i8", num_sequences, offset + 4 * num_sequences)
    bounds = np.frombuffer(data, "<i8", num_bounds, offset + 12 * num_sequences)
    if bounds[0] != 0 or bounds[-1] != num_sequences or (np.diff(bounds) < 0).any():
        raise EvalError(
            f"{path}: documents must start with sequence 0, not decrease and end with "
            f"{num_sequences}; found {bounds[0]} to {bounds[-1]}"
        )
    starts = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    if (lengths < 0).any() or (pointers != starts[:-1] * kind.itemsize).any():
        raise EvalError(f"{path}: sequences must have lengths ≥ 0 and lie end to end")
    return kind, starts[bounds]


def _tokenizer_digest(manifest: Path) -> str:
    try:
        value = json.loads(manifest.read_bytes())
        if (value["format"], value["version"]) != (_FORMAT, _VERSION):
            raise EvalError(
                f"{manifest}: format {value['format']!r} version {value['version']!r}, "
                f"want {_FORMAT!r} version {_VERSION}"
            )
        return str(value["tokenizer"]["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{manifest}: not a manifest of a token dataset ({error!r})") from None


def _digest(tokenizer: Path) -> str:
    """SHA-256 of tokenizer.json as the contract defines it."""
    try:
        value = json.loads(tokenizer.read_bytes())
    except ValueError as error:
        raise EvalError(f"{tokenizer}: not JSON ({error})") from None
    kept = {k: v for k, v in value.items() if k not in ("version", "truncation", "padding")}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
