"""Heads for tokens and back (https://arxiv.org/abs/2309.14509), around any attention.

T tokens of a rank, u ranks that exchange, H query heads, G key and value heads, D and E head dims.
The exchange runs in the whole context-parallel group, empty for all but the u ranks.
"""

import math
from typing import cast

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import all_to_all

from llm_train.model.context_parallel.zigzag import ContextRank, join, part


def heads_for_tokens(
    q_TBHD: torch.Tensor,
    k_TBGD: torch.Tensor,
    v_TBGE: torch.Tensor,
    *,
    place: ContextRank,
    group: dist.ProcessGroup,
) -> tuple[torch.Tensor, ...]:
    """[u·T, B, H / u, D] and alike: this rank's heads of the tokens of all u ranks.

    Key and value heads that u does not divide are repeated until it does.
    """
    ranks = place.ulysses
    repeats = math.lcm(k_TBGD.shape[2], ranks) // k_TBGD.shape[2]
    k_TBGD, v_TBGE = (x.repeat_interleave(repeats, dim=2) for x in (k_TBGD, v_TBGE))
    shapes = [(x.shape[2] // ranks, x.shape[3]) for x in (q_TBHD, k_TBGD, v_TBGE)]
    message = torch.cat(
        [x.unflatten(2, (ranks, -1)).flatten(3) for x in (q_TBHD, k_TBGD, v_TBGE)], dim=-1
    )
    shares = _exchange(message.permute(2, 0, 1, 3), place, group)
    parts = join(shares).split([math.prod(shape) for shape in shapes], dim=-1)
    return tuple(x.unflatten(-1, shape) for x, shape in zip(parts, shapes, strict=True))


def tokens_for_heads(
    out_TBHE: torch.Tensor, *, place: ContextRank, group: dist.ProcessGroup
) -> torch.Tensor:
    """[u·T, B, H / u, E] → [T, B, H, E]: all heads of this rank's tokens."""
    message = part(out_TBHE, place.ulysses)
    return _exchange(message, place, group).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _exchange(shares: torch.Tensor, place: ContextRank, group: dist.ProcessGroup) -> torch.Tensor:
    """Share i to the i-th of the u ranks, for what it has for this rank."""
    peers = place.ulysses_peers()
    sizes = [int(rank in peers) for rank in range(place.size)]
    return cast("torch.Tensor", all_to_all(group, shares, sizes, sizes))
