"""Layers that keep a state instead of keys: gated delta nets and Mamba2.

A text's tokens go one after another whatever the step, and texts apart from each other: sums in
chunks would come out otherwise where a step cuts the text. What projects and norms works on all
tokens of a step at once. The state and the last inputs of the convolution are kept a block (see
`StatePool`), so that texts share beginnings here as in attention.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.arch import Arch, Gdn, LayerRun, Mamba2
from llm_infer.kernels import Kernels
from llm_infer.model.attention import Carry
from llm_infer.model.cache import StatePool, StateShape, Step
from llm_infer.model.parameters import Parameters
from llm_infer.model.rowwise import by_row

# Under the root of the keys' and queries' lengths, as in flash-linear-attention.
_LENGTH_EPS = 1e-6

# T tokens, C channels of the convolution, W its taps, G groups of H heads, K and V channels of a
# key and a value

_Advance = Callable[[Tensor, Tensor, slice], None]
"""Takes convolved inputs [T, C] of a step's rows and the state before them, which it changes."""


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
        self._in = parameters.linear(at + "in_proj")
        self._convolution = _Convolution(parameters, at)
        self._steps = _Steps(parameters, at)
        gain = parameters.in_float32(at + "out_norm.weight")
        self._norm = parameters.rms_norm(gain, eps=arch.norm.eps)
        self._out = parameters.row_parallel(at + "out_proj")

    def __call__(self, x_TH: Tensor, pool: StatePool, step: Step, carry: Carry) -> Tensor:
        """`carry.read` of [T, H] from [T, H]; the state after each block's latest token goes into
        the pool.
        """
        (key, _, value), heads = self._sizes, self._facts.value_heads
        mixed, z, beta, alpha = self._in(x_TH).split([2 * key + value, value, heads, heads], -1)
        beta = by_row(torch.sigmoid, beta.float())
        _, decay = self._steps(alpha)
        out_THV = mixed.new_empty(len(x_TH), heads, value // heads, dtype=torch.float32)

        def advance(convolved_TC: Tensor, state_HKV: Tensor, rows: slice) -> None:
            q, k, v = convolved_TC.split(self._sizes, dim=-1)
            q, k = self._unit(q) * self._facts.key_head_dim**-0.5, self._unit(k)
            tokens = (q, k, v.unflatten(-1, (heads, -1)), decay[rows], beta[rows], out_THV[rows])
            for q_HK, k_HK, v_HV, decay_H, beta_H, out_HV in zip(*tokens, strict=True):
                state_HKV *= decay_H[:, None, None]
                held_H1V = torch.bmm(k_HK[:, None], state_HKV)
                written_H1V = (v_HV[:, None] - held_H1V) * beta_H[:, None, None]
                state_HKV.baddbmm_(k_HK[:, :, None], written_H1V)
                out_HV.copy_(torch.bmm(q_HK[:, None], state_HKV)[:, 0])

        _in_turn(mixed, pool, step, self._convolution, advance)
        gates = by_row(F.silu, z.float())
        out_TV = (self._norm(out_THV).flatten(1) * gates).to(x_TH.dtype)
        return self._out(carry.read(out_TV))

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
        """`carry.read` of [T, H] from [T, H]; the state after each block's latest token goes into
        the pool.
        """
        facts, inner = self._facts, self._sizes[0]
        z, mixed, dt = self._in(x_TH).split([inner, sum(self._sizes), facts.heads], dim=-1)
        dt_TH, decay_TH = self._steps(dt)
        out_THP = mixed.new_empty(len(x_TH), facts.heads, facts.head_dim, dtype=torch.float32)

        def advance(convolved_TC: Tensor, state_HPN: Tensor, rows: slice) -> None:
            x, b, c = convolved_TC.split(self._sizes, dim=-1)
            x_THP = x.unflatten(-1, (facts.heads, -1))
            b, c = (self._of_heads(one) for one in (b, c))
            tokens = (x_THP * dt_TH[rows, :, None], b, c, decay_TH[rows], out_THP[rows])
            for x_HP, b_HN, c_HN, decay_H, out_HP in zip(*tokens, strict=True):
                state_HPN *= decay_H[:, None, None]
                state_HPN += x_HP[:, :, None] * b_HN[:, None]
                out_HP.copy_(torch.bmm(state_HPN, c_HN[:, :, None])[..., 0])
            out_THP[rows] += self._skip_H1 * x_THP

        _in_turn(mixed, pool, step, self._convolution, advance)
        out = out_THP.flatten(1) * by_row(F.silu, z.float())
        if self._gain is not None:
            out_TGI = out.unflatten(-1, (facts.groups, -1))
            out = F.rms_norm(out_TGI, out_TGI.shape[-1:], None, self._eps).flatten(1) * self._gain
        return self._out(carry.read(out.to(x_TH.dtype)))

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
            inputs=(gdn.conv_kernel - 1, sum(_gdn_sizes(gdn))),
        )
    if run.mixer == "mamba2" and arch.mamba2 is not None:
        mamba = arch.mamba2
        return StateShape(
            state=(mamba.heads, mamba.head_dim, mamba.state_dim),
            inputs=(mamba.conv_kernel - 1, sum(_mamba_sizes(mamba))),
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

    def __call__(self, seen: Tensor) -> Tensor:
        """[T, C] of inputs [W - 1 + T, C], those before the first token included."""
        tokens = len(seen) - len(self._taps_WC) + 1
        seen = seen.float()
        out = seen[:tokens] * self._taps_WC[0]
        for first, tap_C in enumerate(self._taps_WC[1:], start=1):
            out += seen[first : first + tokens] * tap_C
        if self._bias is not None:
            out += self._bias
        return by_row(F.silu, out)


class _Steps:
    """How far each head goes at a token, and what it keeps of its state then."""

    def __init__(self, parameters: Parameters, at: str) -> None:
        self._bias_H = parameters.in_float32(at + "dt_bias")
        self._rates_H = -parameters.in_float32(at + "A_log").exp()

    def __call__(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """`dt = softplus(x + bias)` and `exp(-A · dt)`, both [T, H] in float32."""
        dt_TH = by_row(F.softplus, x_TH.float() + self._bias_H)
        return dt_TH, by_row(torch.exp, dt_TH * self._rates_H)


def _in_turn(
    mixed_TC: Tensor, pool: StatePool, step: Step, convolution: _Convolution, advance: _Advance
) -> None:
    """Take each segment of the step from the state before it to the one after it."""
    for segment in step.segments:
        rows = slice(segment.start, segment.stop)
        state, before = pool.before(segment)
        seen = torch.cat([before, mixed_TC[rows]])
        advance(convolution(seen), state, rows)
        pool.keep(segment, state, seen[len(seen) - len(before) :])
