"""Rules of what saves memory."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch
from llm_train.check.multiple import multiple
from llm_train.config import (
    KeptType,
    OffloadModule,
    ParallelConfig,
    Precision,
    RecomputeKind,
    RecomputeMethod,
    RecomputeModule,
    RunConfig,
)
from llm_train.handover import SHORTCUT
from llm_train.placement import layers_per_chunk


def recompute(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Whatever is to be computed again is there."""
    yield from _parts(config, arch)
    if config.recompute.kind is RecomputeKind.FULL:
        yield from _units(config, arch)


def state(config: RunConfig) -> Iterator[str]:
    """Optimizer state and gradients can be kept as they are to be."""
    memory, precision = config.memory, config.train.precision
    of_bf16 = {
        "reuse_parameter_copy=true": memory.reuse_parameter_copy,
        "master_weights=bf16": memory.master_weights is KeptType.BF16,
        "gradients=bf16": memory.gradients is KeptType.BF16,
    }
    if precision is not Precision.BF16:
        for name in (name for name, is_set in of_bf16.items() if is_set):
            yield f"memory: {name} needs train.precision=bf16, found {precision}"
    if memory.changes_state and not config.optimizer.distributed:
        yield (
            "memory: offload_optimizer, optimizer_state=bf16, master_weights=bf16 and "
            "reuse_parameter_copy need optimizer.distributed=true"
        )


# Parts that recomputation does not keep, and where they would be offloaded from.
_NOT_KEPT = {
    RecomputeModule.CORE_ATTENTION: OffloadModule.CORE_ATTENTION,
    RecomputeModule.MLP: OffloadModule.MLP,
    RecomputeModule.MOE: OffloadModule.MLP,
}


def activations(config: RunConfig) -> Iterator[str]:
    """What is offloaded is kept in the first place."""
    parts, recompute = config.memory.offload_activations, config.recompute
    if parts and recompute.kind is RecomputeKind.FULL:
        yield (
            "memory: offload_activations with recompute.kind=full: a layer that is computed again "
            "keeps nothing that could be offloaded"
        )
    for again in recompute.parts:
        if _NOT_KEPT.get(again) in parts:
            yield (
                f"memory: offload_activations has {_NOT_KEPT[again]}, of which recompute.modules "
                f"with {again} keeps nothing"
            )
    if {OffloadModule.SELF_ATTENTION, OffloadModule.CORE_ATTENTION} <= set(parts):
        yield "memory: offload_activations has core_attention, which is a part of self_attention"


def _units(config: RunConfig, arch: Arch) -> Iterator[str]:
    """Layers of a unit (uniform) or at the front (block) are there in the model chunks."""
    wanted, counts = config.recompute.layers, _real_layers(config.parallel, arch.num_layers)
    if config.recompute.method is RecomputeMethod.UNIFORM:
        for count in dict.fromkeys(counts):
            yield from multiple("recompute: layers in a model chunk", count, "layers", wanted)
    elif wanted > max(counts):
        found = ", ".join(map(str, counts))
        yield f"recompute: layers({wanted}) > max({found}), the layers of the model chunks"


def _real_layers(parallel: ParallelConfig, num_layers: int) -> list[int]:
    """Layers of every chunk without its noops."""
    counts: list[int] = []
    start = 0
    for size in layers_per_chunk(parallel, num_layers):
        noops = sum(start <= place < start + size for place in parallel.noop_layers)
        counts.append(size - noops)
        start += size
    return counts


def _parts(config: RunConfig, arch: Arch) -> Iterator[str]:
    mixers = {run.mixer for run in arch.layers}
    feed_forwards = {run.feed_forward for run in arch.layers}
    if SHORTCUT in feed_forwards:
        feed_forwards |= {"dense", "moe"}
    has_shared = arch.moe is not None and arch.moe.shared is not None
    there = {
        RecomputeModule.CORE_ATTENTION: (mixers != {"none"}, "attention"),
        RecomputeModule.MLA_UP_PROJ: ("mla" in mixers, "mla"),
        RecomputeModule.MLP: ("dense" in feed_forwards, "a dense feed-forward"),
        RecomputeModule.MOE: ("moe" in feed_forwards, "experts"),
        RecomputeModule.SHARED_EXPERTS: (has_shared, "shared experts"),
    }
    for part in config.recompute.parts:
        is_there, name = there.get(part, (True, ""))
        if not is_there:
            yield f"recompute: modules has {part}, and no layer of the model has {name}"
    if {RecomputeModule.MOE, RecomputeModule.SHARED_EXPERTS} <= set(config.recompute.parts):
        yield "recompute: modules has moe and shared_experts; moe computes both again"
