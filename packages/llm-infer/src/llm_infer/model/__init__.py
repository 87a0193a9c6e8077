"""One decoder for every model that arch.json describes with attention and feed-forwards."""
