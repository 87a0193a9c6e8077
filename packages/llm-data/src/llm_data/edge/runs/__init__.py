"""A run: planned, encoded in workers, packed, resumed, published."""
