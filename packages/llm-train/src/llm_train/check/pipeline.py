"""Rules of pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.config import ParallelConfig, RunConfig


def pipeline(config: RunConfig, arch: Arch) -> Iterator[str]:
    """The layers, noops among them, fall onto stages and chunks."""
    parallel = config.parallel
    if parallel.vpp is not None and parallel.pp == 1:
        yield f"parallel: vpp({parallel.vpp}) needs pp > 1, found pp(1)"
        return
    count = arch.num_layers + len(parallel.noop_layers)
    for place in parallel.noop_layers:
        if place >= count:
            yield (
                f"parallel.noop_layers: place {place} is not one of 0 to {count - 1} "
                f"({_sum(parallel, arch)})"
            )
    if parallel.layers_per_stage is None:
        yield from _even(parallel, arch, count)
    else:
        yield from _told(parallel, parallel.layers_per_stage, arch, count)


def _even(parallel: ParallelConfig, arch: Arch, count: int) -> Iterator[str]:
    pp, vpp = parallel.pp, parallel.vpp
    if count % (pp * (vpp or 1)):
        layers = _sum(parallel, arch) if parallel.noop_layers else f"layers({count})"
        chunks = f"pp({pp})" if vpp is None else f"pp({pp}) * vpp({vpp}) = {pp * vpp}"
        yield (
            f"parallel: {layers} is not a multiple of {chunks}; add noop_layers, or say "
            "layers_per_stage"
        )


def _told(
    parallel: ParallelConfig, sizes: tuple[int, ...], arch: Arch, count: int
) -> Iterator[str]:
    pp, vpp = parallel.pp, parallel.vpp
    if len(sizes) != pp * (vpp or 1):
        wanted = f"pp({pp})" if vpp is None else f"pp({pp}) * vpp({vpp}) = {pp * vpp}"
        yield f"parallel.layers_per_stage has {len(sizes)} numbers, want one for each of {wanted}"
    if sum(sizes) != count:
        found = " + ".join(map(str, sizes)) or "nothing"
        yield f"parallel.layers_per_stage: {found} = {sum(sizes)}, want {_sum(parallel, arch)}"


def _sum(parallel: ParallelConfig, arch: Arch) -> str:
    noops = len(parallel.noop_layers)
    return f"layers({arch.num_layers}) + noop_layers({noops}) = {arch.num_layers + noops}"
