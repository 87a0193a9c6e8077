"""The specification of layer_norm."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float, offset: float = 0.0
) -> Tensor:
    """`(x - mean(x)) / sqrt(var(x) + eps) * (weight + offset) + bias`.

    x [..., H], weight [H], bias [H] or None → [..., H] in x's dtype. The variance is the mean
    square (divided by H). All in float32, rounded once at the end. `offset` is 1 for models that
    store the weight's distance from one (Nemotron), else 0.
    """
    x32 = wide(x)
    centred = x32 - x32.mean(-1, keepdim=True)
    inverse_deviation = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    out = centred * inverse_deviation * (wide(weight) + offset)
    return (out if bias is None else out + wide(bias)).to(x.dtype)
