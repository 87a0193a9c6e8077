"""Datasets on disk: opened, written, verified, merged, split, blended."""
