"""What each backend of sparse_attention takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import (
    FLOATS,
    INTEGERS,
    alike,
    floating,
    npu_half,
    on_npu,
    short,
    together,
)

# npu_sparse_flash_attention's documented sizes: DeepSeek's latents.
_NPU_LATENT_DIM = 512
_NPU_ROPE_DIM = 64
_NPU_HEADS = frozenset({1, 2, 4, 8, 16, 32, 64, 128})


def _shapes(q: Tensor, kv: Tensor, keys: Tensor, value_dim: int) -> str | None:
    q_shape, kv_shape, keys_shape = q.shape, kv.shape, keys.shape
    if (
        len(q_shape) != 4
        or len(kv_shape) != 3
        or len(keys_shape) != 3
        or kv_shape[0] != q_shape[0]
        or kv_shape[2] != q_shape[3]
        or keys_shape[0] != q_shape[0]
        or keys_shape[1] != q_shape[1]
    ):
        return (
            f"q {tuple(q_shape)}, kv {tuple(kv_shape)}, keys {tuple(keys_shape)}, "
            "want [B, T, H, D], [B, S, D], [B, T, K]"
        )
    if not 1 <= value_dim <= kv_shape[2]:
        return f"value_dim is {value_dim}, want 1 to kv's {kv_shape[2]}"
    if keys.dtype not in INTEGERS:
        return f"keys are {short(keys.dtype)}, want int32 or int64"
    if 0 in q_shape or 0 in kv_shape or 0 in keys_shape:
        return f"q {tuple(q_shape)}, kv {tuple(kv_shape)} or keys {tuple(keys_shape)} is empty"
    device = q.device
    if q.dtype is kv.dtype and kv.device == device and keys.device == device:
        return None
    return alike("q", q, "kv", kv) or together("q", q, "keys", keys)


def _any_device(
    q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
) -> str | None:
    del scale
    reason = _shapes(q, kv, keys, value_dim)
    if reason is None and q.dtype not in FLOATS:
        reason = floating("q", q)
    return reason


def _npu(
    q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
) -> str | None:
    del scale
    return (
        on_npu("q", q)
        or _shapes(q, kv, keys, value_dim)
        or npu_half("q", q)
        or _npu_sizes(q, value_dim)
    )


def _npu_sizes(q: Tensor, value_dim: int) -> str | None:
    heads, dim = q.shape[2:]
    if (value_dim, dim - value_dim) != (_NPU_LATENT_DIM, _NPU_ROPE_DIM):
        return (
            f"{dim} features of which {value_dim} are the value, want "
            f"{_NPU_LATENT_DIM + _NPU_ROPE_DIM} and {_NPU_LATENT_DIM}"
        )
    if heads not in _NPU_HEADS:
        return f"{heads} heads, want a power of 2 up to 128"
    return None


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "npu": _npu}
)
