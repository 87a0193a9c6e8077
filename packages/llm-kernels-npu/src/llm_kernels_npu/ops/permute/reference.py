"""The specification of permute."""

import torch
from torch import Tensor


def permute(tokens: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of every token for each of its experts, sorted by expert; and where each copy lies.

    tokens [N, H], experts [N, K] integers → copies [N · K, H] in tokens' dtype, rows [N · K]
    int32: copy `rows[n * K + k]` is token n for its k-th expert. An expert's copies keep the order
    of the tokens. The gradient of a token is the sum over its copies.
    """
    order = experts.flatten().sort(stable=True).indices
    copies = tokens.index_select(0, order // experts.shape[1])
    places = torch.arange(order.numel(), dtype=torch.int32, device=order.device)
    return copies, torch.empty_like(places).scatter_(0, order, places)
