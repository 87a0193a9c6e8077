"""Norms."""

import torch


def norm(document, weight, name, x):
    """The model's norm under `name` over the last axis."""
    facts, scale = document["norm"], weight(f"{name}.weight")
    if facts["zero_centered"]:
        scale = scale + 1.0
    if facts["kind"] == "layer":
        size = (x.shape[-1],)
        return torch.nn.functional.layer_norm(x, size, scale, weight(f"{name}.bias"), facts["eps"])
    return rms(x, scale, facts["eps"])


def rms(x, scale, eps):
    """x / sqrt(mean(x²) + eps) · scale."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale
