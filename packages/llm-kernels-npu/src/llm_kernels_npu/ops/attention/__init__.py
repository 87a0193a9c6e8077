"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762) with grouped queries."""
