"""Folders, processes and the terminal."""
