"""What each backend of attention takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import alike, floating, npu_floating, on_npu

# npu_fusion_attention's documented ranges.
_NPU_MAX_HEAD_DIM = 512
_NPU_MAX_HEADS = 256
_NPU_MAX_LENGTH = 1 << 20


def _shapes(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None) -> str | None:
    # Each shape is fetched once: this runs at every call.
    q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
    if not len(q_shape) == len(k_shape) == len(v_shape) == 4:
        return f"q, k, v have {q.dim()}, {k.dim()}, {v.dim()} dimensions, want 4 each"
    batch, queries, heads, head_dim = q_shape
    key_batch, keys, groups, key_dim = k_shape
    value_batch, values, value_groups, _ = v_shape
    if (key_batch, key_dim) != (batch, head_dim) or (value_batch, values, value_groups) != (
        batch,
        keys,
        groups,
    ):
        return (
            f"q {tuple(q_shape)}, k {tuple(k_shape)}, v {tuple(v_shape)}, "
            "want [B, T, H, D], [B, S, G, D], [B, S, G, E]"
        )
    if heads % groups:
        return f"{heads} query heads are not a multiple of {groups} key heads"
    return _mask(queries, keys, causal=causal, window=window) or (
        alike("q", q, "k", k) or alike("q", q, "v", v)
    )


def _mask(queries: int, keys: int, *, causal: bool, window: int | None) -> str | None:
    if causal and keys < queries:
        return f"causal with {queries} queries and only {keys} keys"
    if window is not None and not causal:
        return "a window needs causal=True"
    if window is not None and window < 1:
        return f"window is {window}, want at least 1"
    return None


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> str | None:
    del scale
    if softcap is not None and softcap <= 0:
        return f"softcap is {softcap}, want more than 0"
    return _shapes(q, k, v, causal=causal, window=window) or floating("q", q)


def _torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> str | None:
    del scale
    if softcap is not None:
        return f"softcap={softcap}: scaled_dot_product_attention has no softcap"
    return _shapes(q, k, v, causal=causal, window=window) or floating("q", q)


def _npu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> str | None:
    del scale
    if softcap is not None:
        return f"softcap={softcap}: npu_fusion_attention has no softcap"
    return (
        on_npu("q", q)
        or _shapes(q, k, v, causal=causal, window=window)
        or npu_floating("q", q)
        or npu_floating("k", k)
        or _npu_sizes(q, k, v)
    )


def _npu_sizes(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    _, length, heads, head_dim = q.shape
    if v.shape[3] != head_dim:
        return f"v has {v.shape[3]} features a head, want q's {head_dim}"
    if head_dim > _NPU_MAX_HEAD_DIM:
        return f"{head_dim} features a head, want at most {_NPU_MAX_HEAD_DIM}"
    if heads > _NPU_MAX_HEADS:
        return f"{heads} heads, want at most {_NPU_MAX_HEADS}"
    if max(length, k.shape[1]) > _NPU_MAX_LENGTH:
        return f"{max(length, k.shape[1])} tokens, want at most {_NPU_MAX_LENGTH}"
    return None


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _reference, "torch": _torch, "npu": _npu}
)
