"""Hugging Face folders for a training run: the provider of the entry point `llm_train.export`."""

from pathlib import Path

from llm_ckpt.edge.convert import Request, run
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.plan import Target


def export_hf(checkpoint: Path, *, iteration: int, output: Path) -> None:
    """Write one iteration of a Megatron folder as a Hugging Face folder.

    A finished `output` of the same weights is left alone; one that llm-ckpt wrote of others is
    replaced.
    """
    opener = CheckpointOpener(checkpoint, iteration)
    run(
        Request(
            opener=opener,
            destination=output,
            target=Target(layout="hf"),
            fingerprint=opener.fingerprint(),
            is_overwritten=True,
        )
    )
