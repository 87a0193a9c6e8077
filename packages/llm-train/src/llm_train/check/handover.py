"""Rules of layers that hand more than hidden states to the next."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.check.pipeline import pipeline
from llm_train.config import RunConfig
from llm_train.handover import handovers
from llm_train.placement import chunks


def handover(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Both ends of a handover lie in one model chunk."""
    if config.parallel.pp == 1 or any(pipeline(config, arch)):
        return
    vpp = config.parallel.vpp
    places = {
        layer: f"stage {one.stage}" + ("" if vpp is None else f", chunk {one.chunk}")
        for one in chunks(config.parallel, arch.num_layers)
        for layer in one.layers
    }
    by_layer = handovers(arch)
    for layer, one in enumerate(by_layer[1:], start=1):
        if not by_layer[layer - 1].hands_on or places[layer - 1] == places[layer]:
            continue
        lent = "choice of keys" if arch.mla is not None else "keys and values"
        what = lent if one.borrows else "experts' output"
        yield (
            f"parallel: layer {layer} ({places[layer]}) takes the {what} of layer {layer - 1} "
            f"({places[layer - 1]}), and stages exchange hidden states alone: layers_per_stage "
            "must keep both together"
        )
