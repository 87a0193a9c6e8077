"""The specification of unpermute."""

from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def unpermute(copies: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """`Σ over k of weights[n, k] * copies[rows[n * K + k]]`, in float32, rounded once at the end.

    copies [N · K, H] and rows [N · K] as `permute` gives them, weights [N, K] → [N, H] in copies'
    dtype.
    """
    picked = wide(copies).index_select(0, rows).unflatten(0, weights.shape)
    return (picked * wide(weights)[..., None]).sum(1).to(copies.dtype)
