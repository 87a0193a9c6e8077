"""Layers that keep a state instead of keys: gated delta nets and Mamba2.

What projects and norms works on all tokens of a step at once, the recurrence on chunks of a text
(see `chunks`).
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Arch, Gdn, LayerRun, Mamba2
from llm_infer.kernels import Kernels
from llm_infer.model.attention import Carry
from llm_infer.model.cache import StatePool, StateShape, Step
from llm_infer.model.chunks import Tokens, through_chunks
from llm_infer.model.parameters import Parameters
from llm_infer.model.rowwise import by_row

# Under the root of the keys' and queries' lengths, as in flash-linear-attention.
_LENGTH_EPS = 1e-6

# T tokens of the step, n of a text, C channels of the convolution, W its taps, G groups of H heads,
# K and V channels of a key and a value, P of a head's x, N states; S tokens of a chunk


class GatedDeltaNet:
    """arch.json's `gdn` (https://arxiv.org/abs/2412.06464)."""

    def __init__(
        self,
        arch: Arch,
        run: LayerRun,
        parameters: Parameters,
        kernels: Kernels,
        *,
        layer: int,
        block_tokens: int,
    ) -> None:
        del run, kernels, layer, block_tokens
        facts = arch.gdn
        assert facts is not None, "arch.json: a gated delta net without its facts"
        self._facts, at = facts, "self_attention."
        self._sizes = _gdn_sizes(facts)
        self._in = parameters.linear(at + "in_proj", change=self._gates_first)
        self._convolution = _Convolution(parameters, at)
        self._steps = _Steps(parameters, at)
        gain = parameters.in_float32(at + "out_norm.weight")
        self._norm = parameters.rms_norm(gain, eps=arch.norm.eps)
        self._out = parameters.row_parallel(at + "out_proj")

    def __call__(self, x_TH: Tensor, pool: StatePool, step: Step, carry: Carry) -> Tensor:
        """`carry.read` of [T, H] from [T, H]; the pool has the state after the step."""
        heads, value = self._facts.value_heads, self._sizes[-1]
        z, inputs = self._in(x_TH).split([value, sum(self._sizes) + 2 * heads], dim=-1)
        out_THV = x_TH.new_empty(len(x_TH), heads, value // heads, dtype=torch.float32)
        through_chunks(self, inputs, pool, step, out_THV)
        gates = by_row(F.silu, z.float())
        out_TV = (self._norm(out_THV).flatten(1) * gates).to(x_TH.dtype)
        return self._out(carry.read(out_TV))

    def tokens(self, seen: Tensor) -> Tokens:
        """Keys and queries [H, n, 2, K], values [H, n, V], logarithms of decays and betas, both
        [H, n, 1].
        """
        heads, reach = self._facts.value_heads, self._convolution.reach
        mixed, rates = seen[:, : sum(self._sizes)], seen[reach:, sum(self._sizes) :]
        q, k, v = self._convolution(mixed).split(self._sizes, dim=-1)
        beta_nH, alpha_nH = rates.split(heads, dim=-1)
        _, decay_nH = self._steps(alpha_nH)
        beta_nH = by_row(torch.sigmoid, beta_nH.float())
        q_nHK = self._unit(q) * self._facts.key_head_dim**-0.5
        kq_nH2K = torch.stack([self._unit(k), q_nHK], dim=2)
        per_token = kq_nH2K, v.unflatten(-1, (heads, -1)), decay_nH[..., None], beta_nH[..., None]
        return [one.transpose(0, 1) for one in per_token]

    def results(self, chunk: Tokens, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recurrence`: also what each token writes [H, S, V].

        Section 3.3 of the paper. With D the decay from the chunk's start and
        L = tril(beta · k kᵀ · D_row / D_column, -1), tokens write (I + L)⁻¹ beta · (v - D · k S):
        later ones see what earlier ones wrote.
        """
        kq_HS2K, v_HSV, decay_HS1, beta_HS1 = chunk
        decay_HS1 = decay_HS1.cumsum(1)
        kq = kq_HS2K.flatten(1, 2)
        products = (kq @ kq_HS2K[:, :, 0].mT).view(*kq_HS2K.shape[:3], -1)
        kk_HSS, qk_HSS = (products * _between(decay_HS1)[:, :, None]).unbind(2)
        products = (kq @ state).view(*kq_HS2K.shape[:3], -1)
        held_HSV, read_HSV = (products * decay_HS1.exp()[..., None]).unbind(2)
        inverse_HSS = _unit_inverse(kk_HSS * beta_HS1)
        written_HSV = inverse_HSS @ ((v_HSV - held_HSV) * beta_HS1)
        return read_HSV + qk_HSS @ written_HSV, written_HSV

    def state_after(self, chunk: Tokens, state: Tensor, written: Tensor) -> Tensor:
        """See `Recurrence`."""
        kq_HS2K, _, decay_HS1, _ = chunk
        decay_HS1 = decay_HS1.cumsum(1)
        last_H11 = decay_HS1[:, -1:]
        kept_HSK = kq_HS2K[:, :, 0] * (last_H11 - decay_HS1).exp()
        return torch.baddbmm(last_H11.exp() * state, kept_HSK.mT, written)

    def _gates_first(self, weight: Tensor) -> Tensor:
        """The rows for z before those for what is kept of a token, which then lie together."""
        channels, value = sum(self._sizes), self._sizes[-1]
        mixed, z, rates = weight.split([channels, value, len(weight) - channels - value])
        return torch.cat([z, mixed, rates])

    def _unit(self, x_TC: Tensor) -> Tensor:
        """[T, value heads, K] of length one: a key head's for each of its value heads."""
        x_TGK = x_TC.unflatten(-1, (self._facts.key_heads, -1))
        x_TGK = x_TGK * torch.rsqrt(x_TGK.square().sum(-1, keepdim=True) + _LENGTH_EPS)
        return x_TGK.repeat_interleave(self._facts.value_heads // self._facts.key_heads, dim=1)


class MambaMixer:
    """arch.json's `mamba2` (https://arxiv.org/abs/2405.21060)."""

    def __init__(
        self,
        arch: Arch,
        run: LayerRun,
        parameters: Parameters,
        kernels: Kernels,
        *,
        layer: int,
        block_tokens: int,
    ) -> None:
        del run, kernels, layer, block_tokens
        facts = arch.mamba2
        assert facts is not None, "arch.json: a Mamba2 layer without its facts"
        self._facts, at = facts, "mixer."
        self._sizes, self._eps = _mamba_sizes(facts), arch.norm.eps
        self._in = parameters.linear(at + "in_proj")
        self._convolution = _Convolution(parameters, at)
        self._steps = _Steps(parameters, at)
        self._skip_H1 = parameters.in_float32(at + "D")[:, None]
        self._gain = parameters.in_float32(at + "norm.weight") if facts.gated_norm else None
        self._out = parameters.row_parallel(at + "out_proj")

    def __call__(self, x_TH: Tensor, pool: StatePool, step: Step, carry: Carry) -> Tensor:
        """`carry.read` of [T, H] from [T, H]; the pool has the state after the step."""
        facts, inner = self._facts, self._sizes[0]
        z, inputs = self._in(x_TH).split([inner, sum(self._sizes) + facts.heads], dim=-1)
        out_THP = x_TH.new_empty(len(x_TH), facts.heads, facts.head_dim, dtype=torch.float32)
        through_chunks(self, inputs, pool, step, out_THP)
        out = out_THP.flatten(1) * by_row(F.silu, z.float())
        if self._gain is not None:
            out_TGI = out.unflatten(-1, (facts.groups, -1))
            out = F.rms_norm(out_TGI, out_TGI.shape[-1:], None, self._eps).flatten(1) * self._gain
        return self._out(carry.read(out.to(x_TH.dtype)))

    def tokens(self, seen: Tensor) -> Tokens:
        """Of heads x and dt · x [H, n, P], B and C [H, n, N], logarithms of decays [H, n, 1]."""
        channels, reach = sum(self._sizes), self._convolution.reach
        x, b, c = self._convolution(seen[:, :channels]).split(self._sizes, dim=-1)
        x_nHP = x.unflatten(-1, (self._facts.heads, -1))
        dt_nH, decay_nH = self._steps(seen[reach:, channels:])
        per_token = x_nHP, x_nHP * dt_nH[..., None], self._of_heads(b), self._of_heads(c)
        return [one.transpose(0, 1) for one in (*per_token, decay_nH[..., None])]

    def results(self, chunk: Tokens, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recurrence`: also the logarithms of the decay from the chunk's start.

        The dual form of the paper's section 6: a masked product, as attention's.
        """
        x_HSP, added_HSP, b_HSN, c_HSN, decay_HS1 = chunk
        decay_HS1 = decay_HS1.cumsum(1)
        read_HSP = decay_HS1.exp() * (c_HSN @ state.mT)
        seen_HSS = (c_HSN @ b_HSN.mT) * _between(decay_HS1)
        return read_HSP + seen_HSS @ added_HSP + self._skip_H1[..., None] * x_HSP, decay_HS1

    def state_after(self, chunk: Tokens, state: Tensor, written: Tensor) -> Tensor:
        """See `Recurrence`; states are [H, P, N]."""
        last_H11 = written[:, -1:]
        kept_HSP = chunk[1] * (last_H11 - written).exp()
        return torch.baddbmm(last_H11.exp() * state, kept_HSP.mT, chunk[2])

    def _of_heads(self, x_TC: Tensor) -> Tensor:
        """[T, heads, N]: a group's for each of its heads."""
        x_TGN = x_TC.unflatten(-1, (self._facts.groups, -1))
        return x_TGN.repeat_interleave(self._facts.heads // self._facts.groups, dim=1)


def state_shape(arch: Arch, run: LayerRun) -> StateShape | None:
    """What a layer keeps of a text; None for layers without a state."""
    if run.mixer == "gdn" and arch.gdn is not None:
        gdn = arch.gdn
        return StateShape(
            state=(gdn.value_heads, gdn.key_head_dim, gdn.value_head_dim),
            reach=gdn.conv_kernel - 1,
            channels=sum(_gdn_sizes(gdn)) + 2 * gdn.value_heads,
        )
    if run.mixer == "mamba2" and arch.mamba2 is not None:
        mamba = arch.mamba2
        return StateShape(
            state=(mamba.heads, mamba.head_dim, mamba.state_dim),
            reach=mamba.conv_kernel - 1,
            channels=sum(_mamba_sizes(mamba)) + mamba.heads,
        )
    return None


def _gdn_sizes(gdn: Gdn) -> tuple[int, int, int]:
    """Channels of the convolution: queries, keys, values."""
    key = gdn.key_heads * gdn.key_head_dim
    return key, key, gdn.value_heads * gdn.value_head_dim


def _mamba_sizes(mamba: Mamba2) -> tuple[int, int, int]:
    """Channels of the convolution: x, B, C."""
    states = mamba.groups * mamba.state_dim
    return mamba.heads * mamba.head_dim, states, states


class _Convolution:
    """SiLU of a short causal convolution over time, in float32, each channel by itself."""

    def __init__(self, parameters: Parameters, at: str) -> None:
        self._taps_WC = parameters.in_float32(at + "conv1d.weight")[:, 0].t().contiguous()
        has_bias = parameters.has(at + "conv1d.bias")
        self._bias = parameters.in_float32(at + "conv1d.bias") if has_bias else None

    @property
    def reach(self) -> int:
        """How many tokens it looks back."""
        return len(self._taps_WC) - 1

    def __call__(self, seen: Tensor) -> Tensor:
        """[T, C] of inputs [W - 1 + T, C], those before the first token included."""
        tokens = len(seen) - self.reach
        seen = seen.float()
        out = seen[:tokens] * self._taps_WC[0]
        for first, tap_C in enumerate(self._taps_WC[1:], start=1):
            out += seen[first : first + tokens] * tap_C
        if self._bias is not None:
            out += self._bias
        return by_row(F.silu, out)


class _Steps:
    """How far each head goes at a token, and the logarithm of what it keeps of its state then."""

    def __init__(self, parameters: Parameters, at: str) -> None:
        self._bias_H = parameters.in_float32(at + "dt_bias")
        self._rates_H = -parameters.in_float32(at + "A_log").exp()

    def __call__(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """`dt = softplus(x + bias)` and `-A · dt`, both [T, H] in float32."""
        dt_TH = by_row(F.softplus, x_TH.float() + self._bias_H)
        return dt_TH, dt_TH * self._rates_H


def _unit_inverse(lower_HSS: Tensor) -> Tensor:
    """(I + L)⁻¹ of what is below the diagonal, cheaper than to solve for each channel of v."""
    one = torch.eye(lower_HSS.shape[1], device=lower_HSS.device).expand(lower_HSS.shape)
    return torch.linalg.solve_triangular(lower_HSS, one, upper=False, unitriangular=True)


def _between(decay_HS1: Tensor) -> Tensor:
    """[H, S, S]: what is left at a token (row) of what one up to it (column) put in."""
    is_later = _is_later(decay_HS1.shape[1], decay_HS1.device)
    return (decay_HS1 - decay_HS1.mT).masked_fill_(is_later, -torch.inf).exp_()


@lru_cache(maxsize=4)
def _is_later(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)
