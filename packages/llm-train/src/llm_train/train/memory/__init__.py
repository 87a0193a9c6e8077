"""Optimizer state and activations kept elsewhere, or in fewer bytes."""
