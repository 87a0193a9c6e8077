"""gated_delta_rule in chunks: products of matrices within, a state from one to the next.

The chunked form of arXiv:2412.06464, section 3.3. Of a chunk of C tokens let D be the decay from
its start, L = tril(beta · k kᵀ · D_row / D_column, -1). What the tokens write, given the state S
at the start, is (I + L)⁻¹ (beta · v - beta · D · k S): later tokens see what earlier ones wrote.
"""

import torch
from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.decay import bounded, running
from llm_kernels_npu.ops.gated_delta_rule.reference import first_state

# Longer chunks are more work in masked halves, shorter ones more steps one after another.
CHUNK = 64

# B batch, H heads, N chunks of C tokens, K key dim, V value dim


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
    """See `reference.gated_delta_rule`."""
    tokens, heads = v_BTHV.shape[1:3]
    chunk = min(CHUNK, tokens)
    q, k = (
        in_chunks(one, chunk).repeat_interleave(heads // one.shape[2], dim=1)
        for one in (q_BTGK, k_BTGK)
    )
    v, decay, beta = (
        in_chunks(one, chunk)
        for one in (v_BTHV, bounded(log_decay_BTH).unsqueeze(-1), beta_BTH.unsqueeze(-1))
    )
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    decay, between = running(decay)
    from_start, to_end = decay.exp(), between[..., -1:, :].mT
    lower = (k @ k.mT * between * beta).tril(-1)
    right = torch.cat((v * beta, k * beta * from_start), dim=-1)
    solved = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    written, forgotten = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    state = first_state(k_BTGK, wide(v_BTHV), initial_state)
    states: list[Tensor] = []
    values: list[Tensor] = []
    kept, left = (k * to_end).mT, from_start[..., -1:, :]
    for n in range(v.shape[2]):
        states.append(state)
        values.append(written[:, :, n] - forgotten[:, :, n] @ state)
        state = left[:, :, n] * state + kept[:, :, n] @ values[-1]
    out = (q * from_start) @ torch.stack(states, 2)
    out = out + (q @ k.mT * between) @ torch.stack(values, 2)
    return in_tokens(out, tokens).to(v_BTHV.dtype), state


def in_chunks(x_BTHD: Tensor, chunk: int) -> Tensor:
    """[B, H, N, C, D] in float32; zeros fill the last chunk."""
    filled = functional.pad(wide(x_BTHD), (0, 0, 0, 0, 0, -x_BTHD.shape[1] % chunk))
    return filled.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)


def in_tokens(x_BHNCD: Tensor, tokens: int) -> Tensor:
    """The inverse of `in_chunks`: [B, T, H, D]."""
    return x_BHNCD.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens]
