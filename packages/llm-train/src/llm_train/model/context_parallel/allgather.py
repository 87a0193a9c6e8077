"""Every key and value on every rank (Llama 3, https://arxiv.org/abs/2407.21783, section 3.3.2)."""

from typing import cast

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from llm_train.model.context_parallel.zigzag import ContextRank, join


def gather(
    k_TBGD: torch.Tensor,
    v_TBGE: torch.Tensor,
    *,
    place: ContextRank,
    group: dist.ProcessGroup,
) -> tuple[torch.Tensor, ...]:
    """Keys and values of the whole sequence in its order; their gradients are summed."""
    shapes = [x.shape[2:] for x in (k_TBGD, v_TBGE)]
    message = torch.cat([k_TBGD.flatten(2), v_TBGE.flatten(2)], dim=-1)
    shares = cast("torch.Tensor", gather_from_sequence_parallel_region(message, group=group))
    whole = join(shares.unflatten(0, (place.size, -1)))
    parts = whole.split([shape.numel() for shape in shapes], dim=-1)
    return tuple(x.unflatten(-1, tuple(shape)) for x, shape in zip(parts, shapes, strict=True))
