"""Checkpoint formats on disk, each a reader and a streaming writer."""
