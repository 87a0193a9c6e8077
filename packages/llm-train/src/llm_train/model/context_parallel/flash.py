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
    """(out [B, H, T, D], lse [B, H, T]) of q [B, H, T, D], k and v [B, G, S, D]."""

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
    """A device's operators, of one head dim for q, k and v, and what they can take."""

    forward_op: Forward
    backward_op: Backward
    takes_groups: bool  # fewer heads of keys than of queries
    dtypes: frozenset[torch.dtype]
    widest_head: int

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out [B, H, T, E], lse [B, H, T]) of q [B, H, T, D], k [B, G, S, D], v [B, G, S, E]."""
        heads = self._heads(q, k, v)
        out, lse = self.forward_op(*_padded(q, *heads), is_causal=is_causal, scale=scale)
        return out[..., : v.shape[-1]], lse

    def backward(
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
    ) -> Three:
        """Gradients of q, k and v, in their shapes."""
        q_, k_, v_, grad, out = _padded(q, *self._heads(q, k, v), grad, out)
        grad_q, grad_k, grad_v = self.backward_op(
            grad, q_, k_, v_, out=out, lse=lse.contiguous(), is_causal=is_causal, scale=scale
        )
        if not self.takes_groups:
            grad_k, grad_v = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (grad_k, grad_v))
        return grad_q[..., : q.shape[-1]], grad_k[..., : k.shape[-1]], grad_v[..., : v.shape[-1]]

    def _heads(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.takes_groups:
            return k, v
        times = q.shape[1] // k.shape[1]
        return k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)


def kernel_for(q: torch.Tensor, v: torch.Tensor) -> Kernel | None:
    """The kernel for such queries and values."""
    kernel = KERNELS.get(q.device.type)
    if kernel is None or q.dtype not in kernel.dtypes:
        return None
    return kernel if max(q.shape[-1], v.shape[-1]) <= kernel.widest_head else None


def _padded(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """One head dim for all, a multiple of 8 as the CUDA operator wants.

    The zeros that fill them up change no score and add no output.
    """
    size = -(-max(x.shape[-1] for x in tensors) // 8) * 8
    return [F.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in tensors]


def _forward_cpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, scale=scale
    )


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
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, is_causal, scale=scale
    )


def _forward_cuda(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, is_causal, False, scale=scale
    )
    return out, lse


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
    # Only dropout, of which there is none, looks at the random state.
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
    offset = torch.empty((), dtype=torch.uint64, device=q.device)
    lengths = q.shape[2], k.shape[2]
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse, None, None, *lengths, 0.0, is_causal, seed, offset, scale=scale
    )


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "cpu": Kernel(
            forward_op=_forward_cpu,
            backward_op=_backward_cpu,
            takes_groups=False,
            dtypes=frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
            widest_head=1 << 30,
        ),
        "cuda": Kernel(
            forward_op=_forward_cuda,
            backward_op=_backward_cuda,
            takes_groups=True,
            dtypes=frozenset({torch.bfloat16, torch.float16}),
            widest_head=256,
        ),
    }
)
