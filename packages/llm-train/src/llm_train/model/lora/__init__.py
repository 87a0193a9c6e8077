"""Low-rank adapters on the linears of a model."""
