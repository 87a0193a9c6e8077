"""Operators of the native engine: what it asks for, plain torch, and other providers by name."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.errors import InferError
from llm_infer.model.rowwise import by_row

GROUP = "llm_infer.kernels"
TORCH = "torch"


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


class TorchKernels:
    """Plain torch operators; on CPUs `parameters` has SwiGLU computed with the layer before it."""

    def __str__(self) -> str:
        return "plain torch"

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
        """See `Kernels`; in float32, rounded once."""
        gain = weight.float() + offset if offset else weight.float()
        return F.rms_norm(x.float(), gain.shape, gain, eps).to(x.dtype)

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


def resolve(name: str, *, device: str) -> Kernels:
    """Operators called `name` for a device type; `torch` needs nothing installed."""
    if name == TORCH:
        return TorchKernels()
    providers = {one.name: one for one in entry_points(group=GROUP)}
    if name not in providers:
        choices = ", ".join((TORCH, *sorted(providers)))
        raise InferError(f"kernels {name}: no provider of {GROUP!r} has that name; found {choices}")
    make: Callable[..., Kernels] = providers[name].load()
    return make(device=device)
