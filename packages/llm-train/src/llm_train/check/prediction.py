"""Rules of multi-token prediction."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.config import RunConfig


def prediction(config: RunConfig, arch: Arch) -> Iterator[str]:
    """The last stage's own embedding can be kept like the first stage's."""
    pp = config.parallel.pp
    more = {
        "learned positions": arch.position.kind == "learned",
        "normed embeddings": arch.embedding_norm,
    }
    if arch.mtp is None or pp == 1:
        return
    for what in (name for name, is_there in more.items() if is_there):
        yield (
            f"parallel: pp({pp}) > 1 cannot be used with mtp and {what}: the prediction layers on "
            "the last stage embed tokens too, and only token vectors are kept alike on both"
        )


def prediction_notes(config: RunConfig, arch: Arch) -> list[str]:
    """Say what is set and does nothing."""
    if arch.mtp is None and "mtp_loss_scale" in config.train.model_fields_set:
        return ["train.mtp_loss_scale has no effect: the model has no prediction layers (mtp)"]
    return []
