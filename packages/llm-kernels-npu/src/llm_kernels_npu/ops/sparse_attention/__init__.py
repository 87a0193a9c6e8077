"""Attention over chosen keys alone, all heads over one latent a token (DeepSeek-V3.2)."""
