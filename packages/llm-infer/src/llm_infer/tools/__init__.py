"""Calls of tools in what a model writes: the formats, and a splitter of text as it comes."""
