"""What each backend of attention takes."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Required, TypedDict, Unpack

import torch
from torch import Tensor

from llm_kernels_npu.ops.attention.tiles import MAX_DIM
from llm_kernels_npu.ops.checks import (
    alike,
    floating,
    floats_together,
    npu_floating,
    on_npu,
    short,
    together,
    triton_floating,
)

# npu_fusion_attention's documented ranges.
_NPU_MAX_HEAD_DIM = 512
_NPU_MAX_HEADS = 256
_NPU_MAX_LENGTH = 1 << 20
_NPU_MAX_DOCUMENTS = 1024


class Options(TypedDict, total=False):
    """The keyword arguments of attention."""

    causal: Required[bool]
    scale: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    mask: Tensor | None
    cu_seqlens: Sequence[int] | None
    cu_seqlens_k: Sequence[int] | None


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> str | None:
    del scale
    if softcap is not None and softcap <= 0:
        return f"softcap is {softcap}, want more than 0"
    reason = None
    if window is not None:
        reason = _window(window, causal=causal)
    return reason or _tensors(q, k, v, causal, sinks, mask, cu_seqlens, cu_seqlens_k)


def _torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> str | None:
    del scale
    if softcap is not None:
        return f"softcap={softcap}: scaled_dot_product_attention has no softcap"
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        return f"mask is {short(mask.dtype)}, want bool or q's {short(q.dtype)}"
    reason = None
    if window is not None:
        reason = _window(window, causal=causal)
    return reason or _tensors(q, k, v, causal, sinks, mask, cu_seqlens, cu_seqlens_k)


def _npu(q: Tensor, k: Tensor, v: Tensor, **options: Unpack[Options]) -> str | None:
    softcap, mask = options.get("softcap"), options.get("mask")
    if softcap is not None:
        return f"softcap={softcap}: npu_fusion_attention has no softcap"
    if mask is not None and mask.dtype is not torch.bool:
        return f"mask is {short(mask.dtype)}, want bool: npu_fusion_attention adds none"
    return (
        on_npu("q", q)
        or _reference(q, k, v, **options)
        or npu_floating("q", q)
        or npu_floating("k", k)
        or _npu_sizes(q, k, v)
        or _npu_documents(options.get("cu_seqlens"), options.get("cu_seqlens_k"))
    )


def _triton(q: Tensor, k: Tensor, v: Tensor, **options: Unpack[Options]) -> str | None:
    if options.get("mask") is not None:
        return "mask: the Triton kernels have none"
    widest = max(q.shape[-1], v.shape[-1])
    if widest > MAX_DIM:
        return f"{widest} features a head, want at most {MAX_DIM}"
    return (
        _reference(q, k, v, **options)
        or triton_floating("q", q)
        or triton_floating("v", v)
        or _below("tokens", max(q.shape[0] * q.shape[1], k.shape[0] * k.shape[1]))
    )


def _below(what: str, count: int) -> str | None:
    return None if count < 1 << 31 else f"{count} {what}, want fewer than {1 << 31}"


def _window(window: int, *, causal: bool) -> str | None:
    if not causal:
        return "a window needs causal=True"
    return None if window >= 1 else f"window is {window}, want at least 1"


def _tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    sinks: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Sequence[int] | None,
    cu_seqlens_k: Sequence[int] | None,
) -> str | None:
    # Arguments by position, as names cost time at every call.
    q_shape, k_shape = q.shape, k.shape
    reason = _shapes(q, k, v, q_shape, k_shape) or floating("q", q)
    if reason is not None:
        return reason
    if cu_seqlens is not None:
        reason = _documents(q, k, cu_seqlens, cu_seqlens_k, causal=causal, mask=mask)
    elif cu_seqlens_k is not None:
        reason = "cu_seqlens_k without cu_seqlens"
    elif causal and k_shape[1] < q_shape[1]:
        reason = f"causal with {q_shape[1]} queries and only {k_shape[1]} keys"
    if reason is None and sinks is not None:
        reason = _sinks(q, sinks)
    if reason is None and mask is not None:
        reason = _mask(q, k, mask)
    return reason


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, q_shape: torch.Size, k_shape: torch.Size
) -> str | None:
    v_shape = v.shape
    if not len(q_shape) == len(k_shape) == len(v_shape) == 4:
        return f"q, k, v have {q.dim()}, {k.dim()}, {v.dim()} dimensions, want 4 each"
    batch, _, heads, head_dim = q_shape
    key_batch, keys, groups, key_dim = k_shape
    value_batch, values, value_groups, _ = v_shape
    if (
        key_batch != batch
        or key_dim != head_dim
        or value_batch != batch
        or values != keys
        or value_groups != groups
    ):
        return (
            f"q {tuple(q_shape)}, k {tuple(k_shape)}, v {tuple(v_shape)}, "
            "want [B, T, H, D], [B, S, G, D], [B, S, G, E]"
        )
    if not head_dim:
        return f"q of shape {tuple(q_shape)} has no features"
    if not groups or heads % groups:
        return f"{heads} query heads are not a multiple of {groups} key heads"
    if keys == 0:
        return f"k of shape {tuple(k_shape)} has no keys"
    dtype, device = q.dtype, q.device
    if k.dtype is dtype is v.dtype and k.device == device and v.device == device:
        return None
    return alike("q", q, "k", k) or alike("q", q, "v", v)


def _sinks(q: Tensor, sinks: Tensor) -> str | None:
    if sinks.shape != q.shape[2:3]:
        return f"sinks of shape {tuple(sinks.shape)}, want ({q.shape[2]},): one a query head"
    return floats_together(("q", q), ("sinks", sinks))


def _mask(q: Tensor, k: Tensor, mask: Tensor) -> str | None:
    batch, queries, heads, _ = q.shape
    fits = mask.shape[-2:] == (queries, k.shape[1])
    if mask.dim() == 4:
        fits = fits and mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads)
    if not fits or mask.dim() not in (2, 4):
        full = (batch, heads, queries, k.shape[1])
        return f"mask of shape {tuple(mask.shape)}, want {full[2:]} or {full} or 1 for B and H"
    if mask.dtype is torch.bool:
        return together("q", q, "mask", mask)
    return floats_together(("q", q), ("mask", mask))


def _documents(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Sequence[int],
    cu_seqlens_k: Sequence[int] | None,
    *,
    causal: bool,
    mask: Tensor | None,
) -> str | None:
    if mask is not None:
        return "a mask and cu_seqlens: want one of them"
    key_bounds = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    reason = _bounds("cu_seqlens", cu_seqlens, q) or _bounds("cu_seqlens_k", key_bounds, k)
    if reason is not None:
        return reason
    if len(cu_seqlens) != len(key_bounds):
        return f"cu_seqlens has {len(cu_seqlens)} numbers but cu_seqlens_k {len(key_bounds)}"
    if not causal or cu_seqlens_k is None:
        return None
    for document, (queries, keys) in enumerate(
        zip(_lengths(cu_seqlens), _lengths(key_bounds), strict=True)
    ):
        if keys < queries:
            return f"document {document}: causal with {queries} queries and only {keys} keys"
    return None


def _bounds(name: str, bounds: Sequence[int] | Tensor, x: Tensor) -> str | None:
    if isinstance(bounds, Tensor):
        return f"{name} is a tensor, want integers of the host: take its tolist() once a batch"
    tokens = x.shape[0] * x.shape[1]
    falls = any(length < 0 for length in _lengths(bounds))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens or falls:
        shown = ", ".join(map(str, bounds[:8])) + (", …" if len(bounds) > 8 else "")
        return f"{name} is ({shown}), want 0 to {tokens} (B * T) without falling"
    return None


def _lengths(bounds: Sequence[int]) -> list[int]:
    return [stop - start for start, stop in itertools.pairwise(bounds)]


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


def _npu_documents(
    cu_seqlens: Sequence[int] | None, cu_seqlens_k: Sequence[int] | None
) -> str | None:
    if cu_seqlens is None:
        return None
    documents, tokens = len(cu_seqlens) - 1, max((cu_seqlens[-1], (cu_seqlens_k or (0,))[-1]))
    if documents > _NPU_MAX_DOCUMENTS:
        return f"{documents} documents, want at most {_NPU_MAX_DOCUMENTS}"
    if tokens > _NPU_MAX_LENGTH:
        return f"{tokens} tokens in all documents, want at most {_NPU_MAX_LENGTH}"
    if cu_seqlens_k is not None:
        pairs = zip(_lengths(cu_seqlens), _lengths(cu_seqlens_k), strict=True)
        for document, (queries, keys) in enumerate(pairs):
            if queries and not keys:
                return f"document {document} has {queries} queries and no keys"
    return None


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _reference, "torch": _torch, "triton": _triton, "npu": _npu}
)
