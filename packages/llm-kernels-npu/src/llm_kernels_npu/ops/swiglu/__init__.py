"""Gated linear unit with silu (Shazeer 2020, arXiv:2002.05202)."""
