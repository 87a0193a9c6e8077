"""The operators, one folder each: reference, faster backends, limits."""
