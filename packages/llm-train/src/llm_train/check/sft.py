"""Rules of fine-tuning on samples."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.config import RunConfig, SftConfig, Stage


def samples(config: RunConfig) -> Iterator[str]:
    """What only pretraining has stays out of fine-tuning, and the other way round."""
    if config.stage is Stage.PRETRAIN:
        if config.sft != SftConfig():
            changed = [
                name
                for name in SftConfig.model_fields
                if getattr(config.sft, name) != getattr(SftConfig(), name)
            ]
            yield f"sft.{changed[0]} needs stage=sft; found stage=pretrain"
        return
    data = config.data
    alternatives = {
        "data.raw": (data.raw is not None, "llm-data preprocess --task sft makes sample datasets"),
        "train.indexer_loss_coeff": (
            config.train.indexer_loss_coeff > 0,
            "indexers would learn from padding",
        ),
    }
    for name, (is_set, instead) in alternatives.items():
        if is_set:
            yield f"{name} cannot be used with stage=sft: {instead}"
