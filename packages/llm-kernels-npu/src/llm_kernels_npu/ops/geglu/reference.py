"""The specification of geglu."""

import math

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.signatures import GeluFormula


def geglu(x: Tensor, *, approximate: GeluFormula = "none") -> Tensor:
    """`gelu(gate) * up`, where x holds gate then up.

    x [..., 2F] → [..., F] in x's dtype. All in float32, rounded once at the end.
    approximate, as in torch: `none` is `g * Φ(g)` with the normal distribution Φ, `tanh` is
    `g / 2 * (1 + tanh(√(2/π) * (g + 0.044715 g³)))` (Hendrycks and Gimpel 2016, arXiv:1606.08415).
    """
    gate, up = wide(x).chunk(2, dim=-1)
    if approximate == "none":
        portion = torch.erf(gate / math.sqrt(2.0))
    else:
        portion = torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3))
    return (0.5 * gate * (1.0 + portion) * up).to(x.dtype)
