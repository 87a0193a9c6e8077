"""What each backend of sparse_attention takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import (
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


def _shapes(q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int) -> str | None:
    if (
        q.dim() != 4
        or kv.dim() != 3
        or keys.dim() != 3
        or (kv.shape[0], kv.shape[2]) != (q.shape[0], q.shape[3])
        or keys.shape[:2] != q.shape[:2]
    ):
        return (
            f"q {tuple(q.shape)}, kv {tuple(kv.shape)}, keys {tuple(keys.shape)}, "
            "want [B, T, H, D], [B, S, D], [B, T, K]"
        )
    if not 1 <= value_dim <= kv.shape[2]:
        return f"value_dim is {value_dim}, want 1 to kv's {kv.shape[2]}"
    if keys.dtype not in INTEGERS:
        return f"keys are {short(keys.dtype)}, want int32 or int64"
    if not q.numel() or not kv.numel() or not keys.numel():
        return f"q {tuple(q.shape)}, kv {tuple(kv.shape)} or keys {tuple(keys.shape)} is empty"
    return alike("q", q, "kv", kv) or together("q", q, "keys", keys)


def _any_device(
    q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
) -> str | None:
    del scale
    return _shapes(q, kv, keys, value_dim=value_dim) or floating("q", q)


def _npu(
    q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
) -> str | None:
    del scale
    return (
        on_npu("q", q)
        or _shapes(q, kv, keys, value_dim=value_dim)
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
