"""Operators of the native engine: what it asks for, and plain torch."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model import sparse
from llm_infer.model.rowwise import by_row


class Kernels(Protocol):
    """One callable an operator. Results of a row MUST NOT depend on other rows."""

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
        """`x / sqrt(mean(x²) + eps) * (weight + offset)` over the last axis."""
        ...

    def swiglu(self, x: Tensor) -> Tensor:
        """`silu(gate) * up` of a last axis that holds gate, then up."""
        ...

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
        """Rotate the first `cos.shape[-1]` channels of x; tables broadcast over leading axes."""
        ...

    def dsa_indexer(self, q: Tensor, k: Tensor, weights: Tensor, *, top_k: int) -> Tensor:
        """The `top_k` keys of highest `Σ over heads h of weights[h] * relu(q[h] · k)`.

        q [B, T, H, D], k [B, S, D], weights [B, T, H] → [B, T, top_k] int32: places in ascending
        order, then -1 where there are fewer. The last query stands at the last key, and a query
        sees none behind its own.
        """
        ...

    def sparse_attention(
        self, q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float
    ) -> Tensor:
        """`softmax(q · kv[keys] * scale) · kv[keys, :value_dim]` of all heads over the same keys.

        q [B, T, H, D], kv [B, S, D], keys [B, T, K]: different places, or below 0 for none
        → [B, T, H, value_dim].
        """
        ...


class TorchKernels:
    """Plain torch operators; on CPUs `parameters` has SwiGLU computed with the layer before it."""

    def __init__(self, because: str = "") -> None:
        """`because`: why there are no better ones, for the description."""
        self._because = because

    def __str__(self) -> str:
        return f"plain torch ({self._because})" if self._because else "plain torch"

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
        """See `Kernels`; in float32, rounded once. On CPUs a weight may have further axes."""
        gain, wide = weight.float() + offset if offset else weight.float(), x.float()
        if x.device.type != "cpu":
            return F.rms_norm(wide, gain.shape, gain, eps).to(x.dtype)
        # There torch's own takes seven operators. Each of these is a sum or a product: what is
        # both at once is fused for some numbers only.
        inverse: Tensor = torch.ops.aten.linalg_vector_norm.default(wide, 2, [-1], True)
        inverse.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        return (wide * inverse).mul_(gain).to(x.dtype)

    def swiglu(self, x: Tensor) -> Tensor:
        """See `Kernels`."""
        gate, up = x.chunk(2, dim=-1)
        return by_row(F.silu, gate) * up

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
        """See `Kernels`; in float32, rounded once."""
        width = cos.shape[-1]
        turning = x[..., :width].float()
        if interleaved:
            pairs = turning.view(*turning.shape[:-1], width // 2, 2)
            partner = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
        else:
            first, second = turning.chunk(2, dim=-1)
            partner = torch.cat((-second, first), dim=-1)
        turned = torch.addcmul(turning * cos, partner, sin).to(x.dtype)
        return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)

    def dsa_indexer(self, q: Tensor, k: Tensor, weights: Tensor, *, top_k: int) -> Tensor:
        """See `Kernels`."""
        return sparse.dsa_indexer(q, k, weights, top_k=top_k)

    def sparse_attention(
        self, q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float
    ) -> Tensor:
        """See `Kernels`."""
        return sparse.sparse_attention(q, kv, keys, value_dim=value_dim, scale=scale)
