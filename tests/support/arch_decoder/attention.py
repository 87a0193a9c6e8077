"""Softmax attention."""


def attention(layer, x):
    """Causal attention over x [B, T, H]."""
    raise NotImplementedError
