"""The layers of a model one by one, each with what its place among the others gives it."""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.arch import Arch, LayerRun
from llm_train.handover import handovers


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """`lends` and `borrows`: keys and values that several layers share; `chooses`: an indexer."""

    run: LayerRun
    lends: bool
    borrows: bool
    chooses: bool

    @property
    def blocks(self) -> int:
        """Residual branches: its mixer and its feed-forward, or one alone."""
        return (self.run.mixer != "none") + (self.run.feed_forward != "none")


def each_layer(arch: Arch) -> list[Layer]:
    """Of the decoder."""
    is_shared = arch.attention is not None and arch.attention.shared_kv > 1
    return [
        Layer(
            run=run,
            lends=is_shared and one.hands_on and not one.borrows,
            borrows=one.borrows,
            chooses=_has_indexer(arch, run) and index not in _borrowing(arch),
        )
        for index, (run, one) in enumerate(zip(arch.each_layer(), handovers(arch), strict=True))
    ]


def prediction_layer(arch: Arch) -> Layer:
    """The decoder layer of a prediction layer: one of the last kind, which shares nothing."""
    run = arch.layers[-1]
    return Layer(run=run, lends=False, borrows=False, chooses=_has_indexer(arch, run))


def _has_indexer(arch: Arch, run: LayerRun) -> bool:
    return run.mixer == "mla" and arch.mla is not None and arch.mla.indexer is not None


def _borrowing(arch: Arch) -> tuple[int, ...]:
    """Layers that attend to the keys another chose."""
    if arch.mla is None or arch.mla.indexer is None:
        return ()
    return tuple(arch.mla.indexer.borrowing_layers)
