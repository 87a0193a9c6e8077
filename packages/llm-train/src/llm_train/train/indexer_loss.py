"""The loss that sparse-attention indexers learn from, as a step reports it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from llm_train.model.indexer import Indexer
from llm_train.train.fsdp import ShardedModel


def collect_indexer_loss(
    chunks: Sequence[DistributedDataParallel] | Sequence[ShardedModel],
    *,
    indexers: int,
    micro_batches: int,
    device: torch.device,
) -> float | None:
    """Take the mean over layers and tokens of a step, without coefficient; None if none learns.

    `indexers` are those of the whole model; every rank calls this and gets the whole.
    """
    if not indexers:
        return None
    total = torch.zeros((), device=device)
    for module in (module for chunk in chunks for module in chunk.modules()):
        if isinstance(module, Indexer) and module.loss is not None:
            total += module.loss
            module.loss = None
    shared = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(total, group=shared)
    dist.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())  # pyright: ignore[reportArgumentType]  # one group
    # Under sequence parallel a rank holds the part of its own queries, else the whole.
    copies = parallel_state.get_data_parallel_world_size()
    if not chunks[0].config.sequence_parallel:
        copies *= parallel_state.get_tensor_model_parallel_world_size()
    return total.item() / (indexers * micro_batches * copies)
