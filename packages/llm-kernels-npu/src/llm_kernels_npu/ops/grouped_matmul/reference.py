"""The specification of grouped_matmul."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def grouped_matmul(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> Tensor:
    """`x[rows of group e] @ weight[e]`, in float32, rounded once at the end.

    x [M, K] with its rows sorted by group, weight [E, K, N], group_sizes [E] → [M, N] in x's
    dtype. The sizes sum to M; any may be 0, and M too.
    """
    parts = wide(x).split(host_sizes(group_sizes))
    products = [part @ matrix for part, matrix in zip(parts, wide(weight).unbind(), strict=True)]
    return torch.cat(products).to(x.dtype)


def host_sizes(group_sizes: Tensor | Sequence[int]) -> list[int]:
    """Rows of each group as numbers: waits for the device if they lie there."""
    if isinstance(group_sizes, Tensor):
        sizes: list[int] = group_sizes.tolist()  # pyright: ignore[reportUnknownMemberType]
        return sizes
    return list(group_sizes)
