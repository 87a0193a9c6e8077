"""Rules of pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.config import RunConfig


def pipeline(config: RunConfig, arch: Arch) -> Iterator[str]:
    """The layers divide over stages and chunks."""
    pp, vpp, layers = config.parallel.pp, config.parallel.vpp, arch.num_layers
    if vpp is not None and pp == 1:
        yield f"parallel: vpp({vpp}) needs pp > 1, found pp(1)"
    elif vpp is not None and layers % (pp * vpp):
        yield (
            f"parallel: layers({layers}) is not a multiple of pp({pp}) * vpp({vpp}) = {pp * vpp}"
        )
    elif vpp is None and layers % pp:
        yield f"parallel: layers({layers}) is not a multiple of pp({pp})"
