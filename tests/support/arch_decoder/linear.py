"""Linear attention and state-space mixers, step by step."""


def gdn(layer, x):
    """Gated delta net over x [B, T, H]."""
    raise NotImplementedError


def mamba2(layer, x):
    """Mamba2 over x [B, T, H]."""
    raise NotImplementedError
