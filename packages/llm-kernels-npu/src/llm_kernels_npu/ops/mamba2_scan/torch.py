"""mamba2_scan in chunks: the state-space dual form of arXiv:2405.21060, section 6.

Within a chunk the outputs are a masked product of matrices, as attention's are; a state goes from
chunk to chunk.
"""

import torch
from torch import Tensor

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.decay import bounded, running
from llm_kernels_npu.ops.gated_delta_rule.torch import in_chunks, in_tokens
from llm_kernels_npu.ops.mamba2_scan.reference import first_state

# Longer chunks are more work in masked halves, shorter ones more steps one after another.
CHUNK = 64

# B batch, H heads, M chunks of C tokens, P features, N states


def mamba2_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    d_H: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.mamba2_scan`."""
    tokens, heads = x_BTHP.shape[1:3]
    chunk = min(CHUNK, tokens)
    b, c = (
        in_chunks(one, chunk).repeat_interleave(heads // one.shape[2], dim=1)
        for one in (b_BTGN, c_BTGN)
    )
    dt = wide(dt_BTH).unsqueeze(-1)
    x = in_chunks(wide(x_BTHP) * dt, chunk)
    decay, between = running(in_chunks(bounded(dt * wide(a_H)[:, None]), chunk))
    out = (c @ b.mT * between) @ x
    added = x.mT @ (b * between[..., -1:, :].mT)
    state = first_state(wide(x_BTHP), b_BTGN, initial_state)
    states: list[Tensor] = []
    left = decay[..., -1:, :].exp()
    for m in range(x.shape[2]):
        states.append(state)
        state = left[:, :, m] * state + added[:, :, m]
    out = in_tokens(out + (c * decay.exp()) @ torch.stack(states, 2).mT, tokens)
    out = out if d_H is None else out + wide(d_H)[:, None] * wide(x_BTHP)
    return out.to(x_BTHP.dtype), state
