"""Linear recurrences over tokens, chunk by chunk: the gated delta rule and Mamba2's scan.

Within a chunk everything is a product of matrices; a state goes from chunk to chunk. Both compute
in fp32 (fp64 where the input is) with plain torch operators that every device has.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

# Longer chunks are more work in masked halves, shorter ones more steps one after another.
CHUNK = 64

# B batch, T tokens, N chunks of C tokens, H heads in G groups, K key or state dim, V value dim


def gated_delta_rule(
    query_TBGK: torch.Tensor,
    key_TBGK: torch.Tensor,
    value_TBHV: torch.Tensor,
    log_decay_TBH: torch.Tensor,
    beta_TBH: torch.Tensor,
    *,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """S = exp(log_decay) · (I − beta · k kᵀ) · S + beta · k vᵀ at each token, out = Sᵀ q.

    Gives [T, B, H, V]. Consecutive heads share the keys and queries of a group. `chunk` is a power
    of two. The chunked form of https://arxiv.org/abs/2412.06464, section 3.3.
    """
    tokens, heads = value_TBHV.shape[0], value_TBHV.shape[2]
    chunk = min(chunk, 1 << (tokens - 1).bit_length())
    query, key, value = (_in_chunks(x, chunk) for x in (query_TBGK, key_TBGK, value_TBHV))
    decay, beta = (_in_chunks(x.unsqueeze(-1), chunk) for x in (log_decay_TBH, beta_TBH))
    decay = decay.cumsum(-2)
    ratio = _decays_between(decay)
    key_by_key, query_by_key = (_to_heads(x @ key.mT, heads) for x in (key, query))
    query, key = (_to_heads(x, heads) for x in (query, key))
    since_start, until_end = decay.exp(), (decay[..., -1:, :] - decay).exp()
    # What each token writes depends on what those before it in the chunk wrote.
    solve = cast("torch.Tensor", _UnitLowerInverse.apply((key_by_key * ratio * beta).tril(-1)))
    written = solve @ (value * beta)
    seen = solve @ (key * beta * since_start)
    kept = (key * until_end).mT
    state = value.new_zeros(*value.shape[:2], key.shape[-1], value.shape[-1])
    states, values = list[torch.Tensor](), list[torch.Tensor]()
    for written_n, seen_n, kept_n, left_n in _steps(written, seen, kept, since_start[..., -1:, :]):
        states.append(state)
        values.append(written_n - seen_n @ state)
        state = left_n * state + kept_n @ values[-1]
    out = (query * since_start) @ torch.stack(states, 2)
    out = out + (query_by_key * ratio) @ torch.stack(values, 2)
    return _in_tokens(out, tokens)


def selective_scan(
    x_TBHV: torch.Tensor,
    dt_TBH: torch.Tensor,
    a_H: torch.Tensor,
    b_TBGK: torch.Tensor,
    c_TBGK: torch.Tensor,
    *,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """S = exp(a · dt) · S + dt · b xᵀ at each token, out = Sᵀ c.

    Gives [T, B, H, V]. dt > 0 > a. Consecutive heads share the b and c of a group. The block form
    of https://arxiv.org/abs/2405.21060, section 6.
    """
    tokens, heads = x_TBHV.shape[0], x_TBHV.shape[2]
    chunk = min(chunk, tokens)
    x, b, c = (_in_chunks(one, chunk) for one in (x_TBHV, b_TBGK, c_TBGK))
    dt = _in_chunks(dt_TBH.unsqueeze(-1), chunk)
    x = x * dt
    decay = (dt * a_H.to(dt.dtype)[:, None, None, None]).cumsum(-2)
    within = (_to_heads(c @ b.mT, heads) * _decays_between(decay)) @ x
    b, c = (_to_heads(one, heads) for one in (b, c))
    added = (b * (decay[..., -1:, :] - decay).exp()).mT @ x
    state, states = torch.zeros_like(added[:, :, 0]), list[torch.Tensor]()
    for added_n, left_n in _steps(added, decay[..., -1:, :].exp()):
        states.append(state)
        state = left_n * state + added_n
    return _in_tokens(within + (c * decay.exp()) @ torch.stack(states, 2), tokens)


def _in_chunks(x_TBHD: torch.Tensor, chunk: int) -> torch.Tensor:
    """[B, H, N, C, D] in fp32; zeros fill the last chunk."""
    wide = x_TBHD if x_TBHD.dtype is torch.float64 else x_TBHD.float()
    padded = F.pad(wide, (0, 0, 0, 0, 0, 0, 0, -len(wide) % chunk))
    return padded.unflatten(0, (-1, chunk)).permute(2, 3, 0, 1, 4)


def _in_tokens(x_BHNCD: torch.Tensor, tokens: int) -> torch.Tensor:
    """The inverse of `_in_chunks`: [T, B, H, D]."""
    return x_BHNCD.permute(2, 3, 0, 1, 4).flatten(0, 1)[:tokens]


def _to_heads(x_BGNCD: torch.Tensor, heads: int) -> torch.Tensor:
    """A copy of its group's for every head."""
    groups = x_BGNCD.shape[1]
    return x_BGNCD if groups == heads else x_BGNCD.repeat_interleave(heads // groups, dim=1)


def _decays_between(decay_BHNC1: torch.Tensor) -> torch.Tensor:
    """[B, H, N, C, C]: what is left at a token (row) of what one up to it (column) put in."""
    size = decay_BHNC1.shape[-2]
    is_later = torch.ones(size, size, dtype=torch.bool, device=decay_BHNC1.device).triu(1)
    return (decay_BHNC1 - decay_BHNC1.mT).masked_fill(is_later, -torch.inf).exp()


def _steps(*parts_BHN: torch.Tensor) -> Sequence[tuple[torch.Tensor, ...]]:
    """The chunks one after another."""
    return list(zip(*(part.unbind(2) for part in parts_BHN), strict=True))


class _UnitLowerInverse(torch.autograd.Function):
    """(I + L)⁻¹ of strictly lower triangular L [..., C, C], C a power of two.

    The inverses of two blocks on the diagonal make that of the block of both. Every block is one of
    the result's own, so nothing grows on the way as it does in a series of powers of L.
    """

    @staticmethod
    def forward(ctx: Any, lower: torch.Tensor) -> torch.Tensor:
        size, total = 1, lower.shape[-1]
        lower = lower.contiguous()
        inverse = torch.eye(total, dtype=lower.dtype, device=lower.device).repeat(
            *lower.shape[:-2], 1, 1
        )
        while size < total:
            below = _blocks(lower, 2 * size)[..., size:, :size]
            done = _blocks(inverse, 2 * size)
            first, second = done[..., :size, :size], done[..., size:, size:]
            done[..., size:, :size] = -(second @ below @ first)
            size *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ grad_outputs[0] @ inverse.mT)


def _blocks(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """A view [..., C / size, size, size] of the blocks on the diagonal."""
    tiles = matrix.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
