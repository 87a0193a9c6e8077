"""Rotary positions: frequencies under each scaling, and the rotation."""

import math

import torch


def rotate(document, x, *, width, interleaved=None):
    """Rotate the first `width` channels of x [B, T, heads, D] by their positions 0 … T-1.

    Channel pairs are (0, 1), (2, 3), … when interleaved, else (0, width/2), (1, width/2 + 1), …
    `interleaved` overrides what the document says.
    """
    position, length = document["position"], x.shape[1]
    interleaved = position["interleaved"] if interleaved is None else interleaved
    frequencies, factor = inverse_frequencies(document, width=width, length=length)
    angles = torch.arange(length).float()[:, None] * frequencies
    cos, sin = ((f(angles) * factor)[:, None, :] for f in (torch.cos, torch.sin))
    turned, rest = x[..., :width], x[..., width:]
    shape = (*x.shape[:-1], width // 2, 2) if interleaved else (*x.shape[:-1], 2, width // 2)
    axis = -1 if interleaved else -2
    a, b = turned.reshape(shape).unbind(axis)
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=axis)
    return torch.cat([turned.reshape(*x.shape[:-1], width), rest], dim=-1)


def inverse_frequencies(document, *, width, length):
    """(frequencies [width / 2], multiplier of cos and sin) for a sequence of `length` tokens."""
    scaling = document["position"]["scaling"]
    if scaling is None:
        return _plain(document["position"]["base"], width), 1.0
    return SCALINGS[scaling["kind"]](document, scaling, width, length)


def yarn_mscale(factor, mscale=1.0):
    """YaRN's temperature: 0.1 · mscale · ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _plain(base, width):
    return 1.0 / base ** (torch.arange(0, width, 2).float() / width)


def _linear(document, scaling, width, length):
    return _plain(document["position"]["base"], width) / scaling["factor"], 1.0


def _dynamic(document, scaling, width, length):
    """The base grows with the part of the sequence beyond the trained length."""
    trained, factor = document["max_position_embeddings"], scaling["factor"]
    stretch = factor * max(length, trained) / trained - (factor - 1)
    return _plain(document["position"]["base"] * stretch ** (width / (width - 2)), width), 1.0


def _llama3(document, scaling, width, length):
    """Slow channels by 1/factor, fast ones unchanged, a line in turns per context between."""
    plain = _plain(document["position"]["base"], width)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling["factor"], 1.0


def _yarn(document, scaling, width, length):
    """Channels that turn often are kept, those that turn rarely are divided by factor."""
    base, factor = document["position"]["base"], scaling["factor"]
    original = scaling["original_max_position_embeddings"]

    def channel(turns):
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(scaling["beta_fast"]), channel(scaling["beta_slow"])
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    divided = ((torch.arange(width // 2).float() - low) / (high - low)).clamp(0, 1)
    plain = _plain(base, width)
    frequencies = plain / factor * divided + plain * (1 - divided)
    return frequencies, _yarn_attention_factor(factor, scaling)


def _yarn_attention_factor(factor, scaling):
    if scaling["mscale"] and scaling["mscale_all_dim"]:
        of_all = yarn_mscale(factor, scaling["mscale_all_dim"])
        return yarn_mscale(factor, scaling["mscale"]) / of_all
    return yarn_mscale(factor)


def _longrope(document, scaling, width, length):
    """A divisor for each channel, one list up to the trained length and one beyond."""
    original = scaling["original_max_position_embeddings"]
    divisors = scaling["long_factor" if length > original else "short_factor"]
    plain = _plain(document["position"]["base"], width)
    factor = scaling["attention_factor"]
    if factor is None:
        growth = document["max_position_embeddings"] / original
        factor = 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))
    return plain / torch.tensor(divisors), factor


SCALINGS = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
