"""Where this rank stands in its context-parallel group, from megatron-core's own state."""

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.model.context_parallel.ring import Ring
from llm_train.model.context_parallel.zigzag import ContextRank


def context_rank(config: TransformerConfig) -> ContextRank:
    """This rank's place; `hierarchical_context_parallel_sizes` is (Ulysses degree, ring size)."""
    degree = (config.hierarchical_context_parallel_sizes or [1])[0]
    return ContextRank(
        rank=parallel_state.get_context_parallel_rank(),
        size=config.context_parallel_size,
        ulysses=degree,
    )


def context_group() -> dist.ProcessGroup:
    """The ranks that share this rank's sequences."""
    group = parallel_state.get_context_parallel_group()
    assert group is not None
    return group


def ring_of(place: ContextRank, group: dist.ProcessGroup) -> Ring | None:
    """This rank's neighbours; None when nothing travels."""
    if place.ring_size == 1:
        return None
    return Ring(group=group, before=place.ring_peer(-1), after=place.ring_peer(1))
