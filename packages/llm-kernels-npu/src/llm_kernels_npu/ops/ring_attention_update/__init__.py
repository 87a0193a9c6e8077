"""Attention over keys that arrive in parts (Liu et al. 2023, arXiv:2310.01889): the merging."""
