"""What a layer hands to the next one beside hidden states (pure).

A shortcut layer (`dense_shortcut_moe`) hands on what its experts made, which is added behind the
next layer. The first of `attention.shared_kv` layers hands on its keys and values, and each that
uses them hands them on; so does a layer with an indexer the choice of keys that it made. Stages of
a pipeline exchange hidden states alone, so both ends of a handover lie in one model chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_train.arch import Arch, Attention

SHORTCUT = "dense_shortcut_moe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """How one layer stands between its neighbours.

    `borrows`: it uses the keys and values, or the choice of keys, that it is given. `adds`: it adds
    what it is given to its output. `hands_on`: the next layer is given something.
    """

    borrows: bool
    adds: bool
    hands_on: bool


ALONE = Handover(borrows=False, adds=False, hands_on=False)


def handovers(arch: Arch) -> tuple[Handover, ...]:
    """One entry a layer of the decoder."""
    branches = [run.feed_forward == SHORTCUT for run in arch.each_layer()]
    shared = arch.attention.shared_kv if arch.attention is not None else 1
    indexer = arch.mla.indexer if arch.mla is not None else None
    indexed = indexer.borrowing_layers if indexer is not None else ()
    borrows = [index % shared > 0 or index in indexed for index in range(arch.num_layers)]
    return tuple(
        Handover(borrows=borrowing, adds=adding, hands_on=branching or lending)
        for borrowing, adding, branching, lending in zip(
            borrows, [False, *branches[:-1]], branches, [*borrows[1:], False], strict=True
        )
    )


def handover_problems(arch: Arch) -> Iterator[str]:
    """What of it cannot be built, named by fields of arch.json."""
    runs = list(arch.each_layer())
    if any(run.feed_forward == SHORTCUT for run in runs):
        yield from (f"layers.feed_forward={SHORTCUT} {why}" for why in _shortcut_problems(arch))
    if arch.attention is not None and arch.attention.shared_kv > 1:
        shared = f"attention.shared_kv={arch.attention.shared_kv}"
        yield from (f"{shared} with {why}" for why in _sharing_problems(arch, arch.attention))
    if arch.mla is not None and arch.mla.indexer is not None and arch.mla.indexer.borrowing_layers:
        yield from (f"mla.indexer.borrowing_layers with {why}" for why in _choice_problems(arch))


def _shortcut_problems(arch: Arch) -> Iterator[str]:
    if arch.layers[-1].feed_forward == SHORTCUT:
        yield "of the last layer (there is none behind which its output could be added)"
    if arch.norm.placement != "pre":
        yield f"with norm.placement={arch.norm.placement} (can build: pre)"
    if arch.scalars.residual != 1.0:
        yield f"with scalars.residual={arch.scalars.residual} (can build: 1.0)"


def _sharing_problems(arch: Arch, attention: Attention) -> Iterator[str]:
    if any(run.feed_forward == SHORTCUT for run in arch.layers):
        yield f"layers.feed_forward={SHORTCUT} (a layer hands on one thing)"
    for mixer in sorted({run.mixer for run in arch.layers} - {"attention"}):
        yield f"layers.mixer={mixer} (can build: attention in every layer)"
    if attention.qk_norm not in ("none", "head_after_rope"):
        yield (
            f"attention.qk_norm={attention.qk_norm} (can build: none, head_after_rope: keys are "
            "lent as they are projected)"
        )
    if attention.output_gate:
        yield "attention.output_gate=True (can build: False)"


def _choice_problems(arch: Arch) -> Iterator[str]:
    if any(run.feed_forward == SHORTCUT for run in arch.layers):
        yield f"layers.feed_forward={SHORTCUT} (a layer hands on one thing)"
    for mixer in sorted({run.mixer for run in arch.layers} - {"mla"}):
        yield f"layers.mixer={mixer} (can build: mla in every layer)"
