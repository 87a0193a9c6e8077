"""Operators of the native engine in C, compiled for the CPU they run on when first used."""
