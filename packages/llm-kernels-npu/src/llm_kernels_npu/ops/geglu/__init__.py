"""Gated linear unit with gelu (Shazeer 2020, arXiv:2002.05202)."""
