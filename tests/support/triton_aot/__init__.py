"""Triton kernels compiled ahead of time, on a machine that has no device to run them."""
