"""checkpoint.json version 1: what one iteration holds, and the checksums of its files.

The contract is tests/contracts/checkpoint/SPEC.md.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from llm_ckpt.errors import FormatError

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Strict):
    """One file's length and SHA-256."""

    bytes: NonNegativeInt
    sha256: Digest


class Parallel(_Strict):
    """Sizes the writer used; `vpp` is the number of chunks a stage, null = not interleaved."""

    tp: PositiveInt
    pp: PositiveInt
    vpp: PositiveInt | None
    ep: PositiveInt
    etp: PositiveInt
    dp: PositiveInt


class Checkpoint(_Strict):
    """One checkpoint.json document; paths in `files` are relative to its folder."""

    format: Literal["checkpoint"]
    version: Literal[1]
    layout: Literal["v1", "v2"]
    iteration: NonNegativeInt
    consumed_samples: NonNegativeInt
    arch_digest: Digest
    tokenizer_digest: Digest | None
    parallel: Parallel
    contains: list[Literal["weights", "adapter", "optimizer", "rng"]]
    files: dict[str, FileEntry]
    created_by: str

    def dumps(self) -> str:
        """The text of checkpoint.json."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def parse_checkpoint_text(text: str, *, where: str) -> Checkpoint:
    """Check the text of a checkpoint.json."""
    try:
        checkpoint = Checkpoint.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise FormatError(f"{where}: " + "; ".join(problems)) from None
    for path in checkpoint.files:
        if path.startswith("/") or ".." in path.split("/"):
            raise FormatError(f"{where}: files: {path!r} leaves the iteration's folder")
    return checkpoint


def tokenizer_digest(tokenizer: Mapping[str, object]) -> str:
    """Digest of a tokenizer.json (tests/contracts/token_dataset/SPEC.md).

    transformers rewrites `version`, `truncation` and `padding`, so they do not count.
    """
    body = {k: v for k, v in tokenizer.items() if k not in ("version", "truncation", "padding")}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
