"""Rules of dropout."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.config import RunConfig


def dropout(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Only where torch's own attention runs are attention weights dropped."""
    share = config.train.attention_dropout
    if share == 0.0:
        return
    attention, mla = arch.attention, arch.mla
    if attention is None and mla is None:
        yield f"train.attention_dropout({share}) needs attention layers; this model has none"
    cp = config.parallel.cp
    without = {
        f"parallel.cp({cp})": cp > 1,
        "data.reset_documents": config.data.reset_documents,
        "attention.softcap": attention is not None and attention.softcap is not None,
        "attention.sinks": attention is not None and attention.sinks,
        "mla.indexer": mla is not None and mla.indexer is not None,
    }
    for what in (name for name, is_there in without.items() if is_there):
        yield (
            f"train.attention_dropout({share}) cannot be used with {what}: it is built for plain "
            "attention over whole rows alone; train.hidden_dropout can be used"
        )
