"""dsa_indexer over runs of queries, so that the scores of all never exist at once."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.dsa_indexer import reference

# Scores of all heads and sequences that lie in memory at once.
SCORES_AT_ONCE = 1 << 24


def dsa_indexer(
    q: Tensor, k: Tensor, weights: Tensor, *, top_k: int, causal: bool = True
) -> Tensor:
    """See `reference.dsa_indexer`."""
    (batch, queries, heads), keys = q.shape[:3], k.shape[1]
    step = max(1, SCORES_AT_ONCE // (batch * heads * keys))
    found: list[Tensor] = []
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        # Causal queries see nothing behind their last one.
        end = keys - queries + rows.stop if causal else keys
        chosen = reference.dsa_indexer(
            q[:, rows], k[:, :end], weights[:, rows], top_k=top_k, causal=causal
        )
        found.append(chosen)
    return torch.cat(found, dim=1)
