"""Rules of sparse-attention indexers, which choose the keys that queries attend to."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.config import RunConfig


def indexer(config: RunConfig, arch: Arch) -> Iterator[str]:
    """There are whole rows to choose from."""
    if arch.mla is None or arch.mla.indexer is None:
        return
    facts, parallel = arch.mla.indexer, config.parallel
    if parallel.cp > 1:
        yield (
            f"parallel: cp({parallel.cp}) cannot be used with a sparse-attention indexer "
            "(mla.indexer): it chooses among all keys of a sequence, of which a rank has a share"
        )
    if facts.head_dim < arch.mla.qk_rope_head_dim:
        yield (
            f"model: indexer head_dim({facts.head_dim}) < "
            f"qk_rope_head_dim({arch.mla.qk_rope_head_dim}), the channels of it that turn"
        )


def indexer_notes(config: RunConfig, arch: Arch) -> list[str]:
    """Say what is set and does nothing."""
    has_indexer = arch.mla is not None and arch.mla.indexer is not None
    if not has_indexer and "indexer_loss_coeff" in config.train.model_fields_set:
        return ["train.indexer_loss_coeff has no effect: the model has no indexers (mla.indexer)"]
    return []
