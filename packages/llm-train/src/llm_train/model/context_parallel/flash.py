"""Torch's flash attention with its lse, which `scaled_dot_product_attention` keeps to itself.

Plain scores only: every key, or every key up to the query's own. A device or type that has no such
operator has no kernel here, and its scores are computed in blocks.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Forward(Protocol):
    """(out [B, H, T, E], lse [B, H, T]) of q [B, H, T, D], k [B, G, S, D] and v [B, G, S, E]."""

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class Backward(Protocol):
    """Gradients of q, k and v."""

    def __call__(
        self,
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        out: torch.Tensor,
        lse: torch.Tensor,
        is_causal: bool,
        scale: float,
    ) -> Three: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A device's operator and what it can take."""

    forward: Forward
    backward: Backward
    dtypes: frozenset[torch.dtype]
    widest_head: int


def kernel_for(q: torch.Tensor, v: torch.Tensor) -> Kernel | None:
    """The kernel for such queries and values."""
    kernel = KERNELS.get(q.device.type)
    if kernel is None or q.dtype not in kernel.dtypes:
        return None
    return kernel if max(q.shape[-1], v.shape[-1]) <= kernel.widest_head else None


def _padded(size: int, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Every head dim filled up with zeros to `size`: they change no score and add no output."""
    return [F.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in tensors]


def _common_size(q: torch.Tensor, v: torch.Tensor) -> int:
    """One head dim for q, k and v, a multiple of 8 as the CUDA kernel wants."""
    return -(-max(q.shape[-1], v.shape[-1]) // 8) * 8


def _forward_cpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    size = _common_size(q, v)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_padded(size, q, k, v), 0.0, is_causal, scale=scale
    )
    return out[..., : v.shape[-1]], lse


def _backward_cpu(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    lse: torch.Tensor,
    is_causal: bool,
    scale: float,
) -> Three:
    groups = k.shape[1]
    k, v = (x.repeat_interleave(q.shape[1] // groups, dim=1) for x in (k, v))
    size = _common_size(q, v)
    grad, q_, k_, v_, out = _padded(size, grad, q, k, v, out)
    grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q_, k_, v_, out, lse.contiguous(), 0.0, is_causal, scale=scale
    )
    grad_k, grad_v = (x.unflatten(1, (groups, -1)).sum(2) for x in (grad_k, grad_v))
    return grad_q[..., : q.shape[-1]], grad_k[..., : q.shape[-1]], grad_v[..., : v.shape[-1]]


def _forward_cuda(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        *_padded(_common_size(q, v), q, k, v), 0.0, is_causal, False, scale=scale
    )
    return out[..., : v.shape[-1]], lse


def _backward_cuda(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    lse: torch.Tensor,
    is_causal: bool,
    scale: float,
) -> Three:
    grad, q_, k_, v_, out = _padded(_common_size(q, v), grad, q, k, v, out)
    # Only dropout, of which there is none, looks at the random state.
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)
    grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad,
        q_,
        k_,
        v_,
        out,
        lse.contiguous(),
        None,
        None,
        q.shape[2],
        k.shape[2],
        0.0,
        is_causal,
        state,
        torch.empty((), dtype=torch.uint64, device=q.device),
        scale=scale,
    )
    return grad_q[..., : q.shape[-1]], grad_k[..., : q.shape[-1]], grad_v[..., : v.shape[-1]]


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "cpu": Kernel(
            forward=_forward_cpu,
            backward=_backward_cpu,
            dtypes=frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
            widest_head=1 << 30,
        ),
        "cuda": Kernel(
            forward=_forward_cuda,
            backward=_backward_cuda,
            dtypes=frozenset({torch.bfloat16, torch.float16}),
            widest_head=256,
        ),
    }
)
