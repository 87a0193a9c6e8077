"""Rules of sequence length."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.config import RunConfig


def positions(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Every token has a position."""
    length, limit = config.train.seq_length, arch.max_position_embeddings
    if arch.position.kind == "learned" and length > limit:
        yield (
            f"train: seq_length({length}) > max_position_embeddings({limit}), and the model has "
            "one learned vector per position"
        )
