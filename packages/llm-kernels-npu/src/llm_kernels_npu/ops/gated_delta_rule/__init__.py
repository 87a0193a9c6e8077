"""Linear attention that overwrites what a key held before (arXiv:2412.06464)."""
