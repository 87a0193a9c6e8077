"""The specification of causal_conv1d."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.checks import wide


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> tuple[Tensor, Tensor]:
    """`act(bias + Σ over w of weight[c, w] * x[t - W + 1 + w, c])`, in float32, rounded at the end.

    x [B, T, C], weight [C, W], bias [C], initial_state [B, W - 1, C]: the tokens before the first,
    None = zeros → out [B, T, C], and the last W - 1 tokens as the next call's initial_state, both
    in x's dtype. activation: None or "silu".
    """
    width, tokens = weight.shape[1], x.shape[1]
    seen = with_state(x, width, initial_state)
    taps = wide(weight).unbind(1)
    out = sum(wide(seen[:, w : w + tokens]) * tap for w, tap in enumerate(taps))
    assert isinstance(out, Tensor)
    out = out if bias is None else out + wide(bias)
    out = functional.silu(out) if activation == "silu" else out
    return out.to(x.dtype), seen[:, tokens:]


def with_state(x: Tensor, width: int, initial_state: Tensor | None) -> Tensor:
    """[B, W - 1 + T, C]: the tokens with those before them."""
    if initial_state is None:
        return functional.pad(x, (0, 0, width - 1, 0))
    return torch.cat((initial_state.to(x.dtype), x), dim=1)
