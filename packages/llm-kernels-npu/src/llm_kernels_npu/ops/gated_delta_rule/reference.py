"""The specification of gated_delta_rule: one token after another."""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide

# B batch, T tokens, H value heads, G key heads, K key dim, V value dim


def gated_delta_rule(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """At each token `S = exp(log_decay) * S; S = S + beta * k (v - Sᵀk)ᵀ; out = scale * Sᵀq`.

    initial_state [B, H, K, V], None = zeros → out [B, T, H, V] in v's dtype, and the state after
    the last token in float32 (float64 for float64). All in float32, rounded once at the end.
    Value head h uses key head h // (H / G). scale: None is K^-0.5. Keys are taken as they are: a
    model that wants them of length one (Qwen3-Next) makes them so. log_decay ≤ 0.
    """
    heads = v_BTHV.shape[2]
    q, k = (wide(one).repeat_interleave(heads // one.shape[2], dim=2) for one in (q_BTGK, k_BTGK))
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    v, decay, beta = wide(v_BTHV), wide(log_decay_BTH).exp(), wide(beta_BTH)
    state = first_state(k, v, initial_state)
    outs: list[Tensor] = []
    for t in range(v.shape[1]):
        state = state * decay[:, t, :, None, None]
        held = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        written = (v[:, t] - held) * beta[:, t, :, None]
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], written)
        outs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outs, dim=1).to(v_BTHV.dtype), state


def first_state(k_BTHK: Tensor, v_BTHV: Tensor, initial_state: Tensor | None) -> Tensor:
    """[B, H, K, V]: the state given, or zeros."""
    if initial_state is not None:
        return wide(initial_state)
    batch, _, heads, value_dim = v_BTHV.shape
    return v_BTHV.new_zeros(batch, heads, k_BTHK.shape[-1], value_dim)
