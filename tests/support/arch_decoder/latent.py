"""Multi-head latent attention."""


def mla(layer, x):
    """Causal latent attention over x [B, T, H]."""
    raise NotImplementedError
