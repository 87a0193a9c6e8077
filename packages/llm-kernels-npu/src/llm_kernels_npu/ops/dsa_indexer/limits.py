"""What each backend of dsa_indexer takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import (
    NPU_FLOATS,
    alike,
    floats_together,
    npu_half,
    on_npu,
    together,
)

# npu_lightning_indexer's documented sizes: DeepSeek-V3.2's own.
_NPU_HEADS = 64
_NPU_HEAD_DIM = 128
_NPU_TOP_K = frozenset({*range(1, 2049), 3072, 4096, 5120, 6144, 7168, 8192})


def _shapes(q: Tensor, k: Tensor, weights: Tensor, top_k: int, causal: bool) -> str | None:
    q_shape, k_shape, weights_shape = q.shape, k.shape, weights.shape
    if (
        len(q_shape) != 4
        or len(k_shape) != 3
        or k_shape[0] != q_shape[0]
        or k_shape[2] != q_shape[3]
        or (*weights_shape, q_shape[3]) != q_shape
    ):
        return (
            f"q {tuple(q_shape)}, k {tuple(k_shape)}, weights {tuple(weights_shape)}, "
            "want [B, T, H, D], [B, S, D], [B, T, H]"
        )
    if top_k < 1:
        return f"top_k is {top_k}, want at least 1"
    if causal and k_shape[1] < q_shape[1]:
        return f"causal with {q_shape[1]} queries and only {k_shape[1]} keys"
    if 0 in q_shape or 0 in k_shape:
        return f"q {tuple(q_shape)} or k {tuple(k_shape)} is empty"
    return alike("q", q, "k", k) or together("q", q, "weights", weights)


def _any_device(
    q: Tensor, k: Tensor, weights: Tensor, *, top_k: int, causal: bool = True
) -> str | None:
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) == 4 and len(k_shape) == 3:
        batch, queries, heads, dim = q_shape
        key_batch, keys, key_dim = k_shape
        if (
            key_batch == batch
            and key_dim == dim
            and weights.shape == (batch, queries, heads)
            and top_k >= 1
            and (keys >= queries or not causal)
            and batch * queries * heads * dim * keys
            and q.dtype is k.dtype in NPU_FLOATS
            and weights.dtype in NPU_FLOATS
            and q.device == k.device == weights.device
        ):
            return None
    return _shapes(q, k, weights, top_k, causal) or floats_together(
        ("q", q), ("k", k), ("weights", weights)
    )


def _npu(q: Tensor, k: Tensor, weights: Tensor, *, top_k: int, causal: bool = True) -> str | None:
    return (
        on_npu("q", q)
        or _shapes(q, k, weights, top_k, causal)
        or npu_half("q", q)
        or _npu_sizes(q, top_k)
    )


def _npu_sizes(q: Tensor, top_k: int) -> str | None:
    if q.shape[2:] != (_NPU_HEADS, _NPU_HEAD_DIM):
        return f"q of shape {tuple(q.shape)}, want {_NPU_HEADS} heads of {_NPU_HEAD_DIM} features"
    if top_k not in _NPU_TOP_K:
        return f"top_k is {top_k}, want 1 to 2048, or a multiple of 1024 up to 8192"
    return None


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "npu": _npu}
)
