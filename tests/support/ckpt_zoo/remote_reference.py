"""Small pieces of decoders in plain torch for families that no model of transformers can stand for.

Written from the papers and the authors' descriptions, apart from the decoder of tests/support.
"""

import math

import torch
import torch.nn.functional as F


def rms_norm(x, weight, eps):
    """Root-mean-square norm over the last axis."""
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotary(x, base):
    """x [B, T, heads, D]: channels j, j + D/2 are a complex number, turned by t · base^(-2j/D)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(half) / half)
    turned = torch.complex(x[..., :half], x[..., half:])
    turned = turned * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def alibi(heads, length):
    """Bias [heads, T, T]: minus slope · distance (Press et al., https://arxiv.org/abs/2108.12409).

    Slopes of 2^k heads are 2^(-8/2^k), its square, …; other numbers of heads add every second slope
    of the next power of two, as the paper's code does.
    """

    def geometric(count):
        return [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)]

    whole = 1 << (heads.bit_length() - 1)
    slopes = (geometric(whole) + geometric(2 * whole)[::2])[:heads]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return -torch.tensor(slopes)[:, None, None] * distance


def attend(q, k, v, *, scale=None, bias=None, cap=None):
    """Causal attention: q [B, T, heads, D], k and v [B, T, groups, D] → [B, T, heads · D]."""
    length, heads = q.shape[1:3]
    share = heads // k.shape[2]
    outputs = []
    for head in range(heads):
        query, key, value = q[:, :, head], k[:, :, head // share], v[:, :, head // share]
        scores = query @ key.transpose(1, 2)
        scores = scores * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        if bias is not None:
            scores = scores + bias[head]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value)
    return torch.cat(outputs, dim=-1)


def gated(x, gate, up, down, activation=F.silu):
    """A gated feed-forward."""
    return F.linear(activation(F.linear(x, gate)) * F.linear(x, up), down)


def mixture(x, router, top_k, expert, *, normalize=False):
    """Σ softmax weight · expert(number, x) over the best `top_k`, token by token.

    `normalize` divides the weights by their sum.
    """
    flat = x.reshape(-1, x.shape[-1])
    probabilities = F.linear(flat, router).softmax(-1)
    out = torch.zeros_like(flat)
    for row, scores in enumerate(probabilities):
        chosen = scores.argsort(descending=True)[:top_k]
        total = scores[chosen].sum() if normalize else 1.0
        for number in chosen.tolist():
            out[row] += scores[number] / total * expert(number, flat[row])
    return out.reshape(x.shape)


def split_heads(x, heads):
    """[B, T, heads · D] → [B, T, heads, D]."""
    return x.unflatten(-1, (heads, -1))
