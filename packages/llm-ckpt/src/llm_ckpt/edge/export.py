"""Hugging Face folders for a training run: the provider of the entry point `llm_train.export`."""

from dataclasses import dataclass
from pathlib import Path

from llm_ckpt.adapt import Replace
from llm_ckpt.edge.convert import Request, run
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.plan import Target
from llm_ckpt.source import WeightSource, open_source


def export_hf(
    checkpoint: Path,
    *,
    iteration: int | None,
    output: Path,
    adapter: Path | None = None,
    replace: Replace | None = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder: one iteration of a Megatron folder, or any.

    `adapter` is a PEFT folder to merge into it, of what `replace` makes of the weights. A finished
    `output` of the same weights is left alone; one that llm-ckpt wrote of others is replaced.
    """
    opener = CheckpointOpener(checkpoint, iteration, adapter=adapter)
    run(
        Request(
            opener=_Opener(opener, replace),
            destination=output,
            target=Target(layout="hf"),
            fingerprint=opener.fingerprint() + (" replaced" if replace is not None else ""),
            is_overwritten=True,
        )
    )


@dataclass(frozen=True, slots=True)
class _Opener:
    checkpoint: CheckpointOpener
    replace: Replace | None

    def __call__(self) -> WeightSource:
        one = self.checkpoint
        return open_source(
            one.path, iteration=one.iteration, adapter=one.adapter, replace=self.replace
        )
