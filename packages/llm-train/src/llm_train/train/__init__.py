"""The training engine: data, optimizer, steps, checkpoints."""
