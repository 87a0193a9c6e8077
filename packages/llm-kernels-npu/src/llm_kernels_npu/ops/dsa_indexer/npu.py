"""dsa_indexer by `torch_npu.npu_lightning_indexer`."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.dsa_indexer.reference import ascending

_ALL = 0
_CAUSAL_ENDING_AT_LAST_KEY = 3


def dsa_indexer(
    q: Tensor, k: Tensor, weights: Tensor, *, top_k: int, causal: bool = True
) -> Tensor:
    """See `reference.dsa_indexer`; which of equal scores are taken is the device's choice."""
    keys, _ = torch.ops.npu.npu_lightning_indexer.default(
        q.detach().contiguous(),
        k.detach().contiguous()[:, :, None],
        weights.detach().to(q.dtype).contiguous(),
        sparse_count=top_k,
        sparse_mode=_CAUSAL_ENDING_AT_LAST_KEY if causal else _ALL,
    )
    return ascending(keys[:, :, 0], top_k)
