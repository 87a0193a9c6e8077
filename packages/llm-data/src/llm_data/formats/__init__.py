"""File formats as pure functions between bytes and values."""
