"""Which tokenizer a folder holds: the digest that token datasets and checkpoints carry.

Contract: tests/contracts/token_dataset/SPEC.md.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from llm_train.edge.token_dataset import DataError

# Loading and saving a tokenizer rewrites these.
_VOLATILE = ("version", "truncation", "padding")


def tokenizer_digest(files: Sequence[Path]) -> str | None:
    """SHA-256 of the tokenizer.json among `files`, lower-case hex; None when there is none."""
    for path in files:
        if path.name == "tokenizer.json":
            return _digest(path)
    return None


def _digest(path: Path) -> str:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    kept = {key: value for key, value in document.items() if key not in _VOLATILE}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
