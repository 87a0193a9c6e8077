"""The specification of rope."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate pairs of features of x by the angles whose cosine and sine are given.

    x [..., D]; cos, sin [..., R], R even and ≤ D, broadcast over x's leading dimensions, so
    [1, T, 1, R] serves x [B, T, H, D] and [T, 1, 1, R] serves [T, B, H, D].
    Features R.. of x pass through unchanged. → x's shape and dtype.

    half: feature i pairs with i + R/2, and the tables hold each angle at both.
    interleaved: feature 2i pairs with 2i + 1, and the tables hold each angle at both.
    All in float32, rounded once at the end. Gradients flow to x alone: the tables are constants.
    """
    rotary_dim = cos.shape[-1]
    turning, passing = x[..., :rotary_dim], x[..., rotary_dim:]
    turning32 = wide(turning)
    partner = _interleaved_partner(turning32) if interleaved else _half_partner(turning32)
    turned = turning32 * wide(cos).detach() + partner * wide(sin).detach()
    return torch.cat((turned.to(x.dtype), passing), dim=-1)


def _half_partner(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _interleaved_partner(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
