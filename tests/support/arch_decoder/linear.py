"""Linear attention and state-space mixers, step by step."""

import torch
import torch.nn.functional as F

from arch_decoder.attention import linear
from arch_decoder.norms import rms

L2_EPS = 1e-6


def gdn(layer, x):
    """Gated delta net over x [B, T, H] (https://arxiv.org/abs/2412.06464, equation 10)."""
    # B batch, T tokens, H value heads, K key dim, V value dim
    facts, batch, length = layer.document["gdn"], *x.shape[:2]
    keys, values = facts["key_heads"], facts["value_heads"]
    key, value = keys * facts["key_head_dim"], values * facts["value_head_dim"]
    rows = linear(layer, x, "self_attention.in_proj")
    qkv, z, b, a = rows.split([2 * key + value, value, values, values], dim=-1)
    q, k, v = _convolved(layer, qkv, "self_attention").split([key, key, value], dim=-1)
    q_BTHK, k_BTHK = (
        _unit(part.reshape(batch, length, keys, -1)).repeat_interleave(values // keys, dim=2)
        for part in (q, k)
    )
    v_BTHV = v.reshape(batch, length, values, -1)
    rate = layer.weight("self_attention.A_log").exp()
    decay_BTH = (-rate * F.softplus(a + layer.weight("self_attention.dt_bias"))).exp()
    out = _delta_rule(
        q_BTHK * facts["key_head_dim"] ** -0.5, k_BTHK, v_BTHV, decay_BTH, b.sigmoid()
    )
    # This norm's weight is never zero-centred, whatever norm.zero_centered says of the others.
    scale = layer.weight("self_attention.out_norm.weight")
    out = rms(out, scale, layer.document["norm"]["eps"]) * F.silu(z.reshape(out.shape))
    return linear(layer, out.flatten(2), "self_attention.out_proj")


def mamba2(layer, x):
    """Mamba2 over x [B, T, H] (https://arxiv.org/abs/2405.21060, §7)."""
    # B batch, T tokens, H heads, P head dim, N state dim
    facts, batch, length = layer.document["mamba2"], *x.shape[:2]
    heads, groups = facts["heads"], facts["groups"]
    inner, states = heads * facts["head_dim"], groups * facts["state_dim"]
    rows = linear(layer, x, "mixer.in_proj")
    z, mixed, dt = rows.split([inner, inner + 2 * states, heads], dim=-1)
    inputs, write, read = _convolved(layer, mixed, "mixer").split([inner, states, states], dim=-1)
    x_BTHP = inputs.reshape(batch, length, heads, -1)
    b_BTHN, c_BTHN = (
        part.reshape(batch, length, groups, -1).repeat_interleave(heads // groups, dim=2)
        for part in (write, read)
    )
    dt_BTH = F.softplus(dt + layer.weight("mixer.dt_bias"))
    decay_BTH = (-layer.weight("mixer.A_log").exp() * dt_BTH).exp()
    out = _scan(x_BTHP * dt_BTH[..., None], b_BTHN, c_BTHN, decay_BTH)
    out = (out + layer.weight("mixer.D")[:, None] * x_BTHP).flatten(2) * F.silu(z)
    if facts["gated_norm"]:
        out = _normed_by_group(layer, out, groups)
    return linear(layer, out, "mixer.out_proj")


def _delta_rule(q_BTHK, k_BTHK, v_BTHV, decay_BTH, beta_BTH):
    """S ← decay·S, then S ← S + beta·k⊗(v − S·k); the output is S·q."""
    state_BHKV = q_BTHK.new_zeros(*q_BTHK.shape[::2], q_BTHK.shape[3], v_BTHV.shape[3])
    outputs = []
    for t in range(q_BTHK.shape[1]):
        state_BHKV = state_BHKV * decay_BTH[:, t, :, None, None]
        known = torch.einsum("bhkv,bhk->bhv", state_BHKV, k_BTHK[:, t])
        change = (v_BTHV[:, t] - known) * beta_BTH[:, t, :, None]
        state_BHKV = state_BHKV + torch.einsum("bhk,bhv->bhkv", k_BTHK[:, t], change)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state_BHKV, q_BTHK[:, t]))
    return torch.stack(outputs, dim=1)


def _scan(x_BTHP, b_BTHN, c_BTHN, decay_BTH):
    """S ← decay·S + x⊗b; the output is S·c."""
    state_BHPN = x_BTHP.new_zeros(*x_BTHP.shape[::2], x_BTHP.shape[3], b_BTHN.shape[3])
    outputs = []
    for t in range(x_BTHP.shape[1]):
        added = torch.einsum("bhp,bhn->bhpn", x_BTHP[:, t], b_BTHN[:, t])
        state_BHPN = state_BHPN * decay_BTH[:, t, :, None, None] + added
        outputs.append(torch.einsum("bhpn,bhn->bhp", state_BHPN, c_BTHN[:, t]))
    return torch.stack(outputs, dim=1)


def _convolved(layer, x, at):
    """silu of a causal convolution over tokens, each channel by itself."""
    weight, channels = layer.weight(f"{at}.conv1d.weight"), x.shape[-1]
    bias = layer.weight(f"{at}.conv1d.bias") if layer.has(f"{at}.conv1d.bias") else None
    padded = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=channels)).transpose(1, 2)


def _normed_by_group(layer, x, groups):
    by_group, eps = x.unflatten(-1, (groups, -1)), layer.document["norm"]["eps"]
    return rms(by_group, 1.0, eps).flatten(2) * layer.weight("mixer.norm.weight")


def _unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)
