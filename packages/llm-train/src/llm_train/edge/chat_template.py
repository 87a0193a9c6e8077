"""The chat template that a model's folder brings: its digest, as sample datasets carry it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path


def template_digest(files: Sequence[Path]) -> str | None:
    """SHA-256 of the text of the template among `files`; None when there is none.

    transformers 5 keeps it in chat_template.jinja, older versions in tokenizer_config.json.
    """
    by_name = {path.name: path for path in files}
    if (path := by_name.get("chat_template.jinja")) is not None:
        return _digest(path.read_text(encoding="utf-8"))
    if (path := by_name.get("tokenizer_config.json")) is not None:
        text = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        return _digest(text) if isinstance(text, str) else None
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
