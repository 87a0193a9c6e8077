"""SwiGLU behind its linear layer, in the product's own kernel where oneDNN computes it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.linear import BLOCK_ROWS, PackedLinear
from llm_infer.model.rowwise import by_row


class PackedSwiglu:
    """`silu(gate) * up` of a linear layer whose outputs are gate, then up.

    Rows stay the same as those of a `PackedLinear` do.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` [2N, K], which may be freed afterwards."""
        gate, up = weight.chunk(2)
        gate_bias, up_bias = (None, None) if bias is None else bias.chunk(2)
        self._gate, self._up = PackedLinear(gate, gate_bias), PackedLinear(up, up_bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, N] of x [T, K]."""
        if not (self._gate.is_one_kernel and self._up.is_one_kernel):
            return by_row(F.silu, self._gate(x)) * self._up(x)
        if len(x) > BLOCK_ROWS:
            return torch.cat([self(part) for part in x.split(BLOCK_ROWS)])
        return self._up.times(x, self._gate.swish(x))
