"""The specification of mamba2_scan: one token after another."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide

# B batch, T tokens, H heads of P features, G groups, N states


def mamba2_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    d_H: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """At each token `S = exp(a * dt) * S + dt * x bᵀ; out = S c + d * x`.

    initial_state [B, H, P, N], None = zeros → out [B, T, H, P] in x's dtype, and the state after
    the last token in float32 (float64 for float64). All in float32, rounded once at the end.
    Head h uses group h // (H / G). dt ≥ 0, after its softplus; a < 0.
    """
    heads = x_BTHP.shape[2]
    b, c = (wide(one).repeat_interleave(heads // one.shape[2], dim=2) for one in (b_BTGN, c_BTGN))
    x, dt = wide(x_BTHP), wide(dt_BTH)
    decay = (dt * wide(a_H)).exp()
    state = first_state(x, b, initial_state)
    outs: list[Tensor] = []
    for t in range(x.shape[1]):
        added = torch.einsum("bhp,bhn->bhpn", x[:, t] * dt[:, t, :, None], b[:, t])
        state = state * decay[:, t, :, None, None] + added
        outs.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]))
    out = torch.stack(outs, dim=1)
    out = out if d_H is None else out + wide(d_H)[:, None] * x
    return out.to(x_BTHP.dtype), state


def first_state(x_BTHP: Tensor, b_BTGN: Tensor, initial_state: Tensor | None) -> Tensor:
    """[B, H, P, N]: the state given, or zeros."""
    if initial_state is not None:
        return wide(initial_state)
    batch, _, heads, features = x_BTHP.shape
    return x_BTHP.new_zeros(batch, heads, features, b_BTGN.shape[-1])
