"""Tokens sorted by the experts they were sent to: what comes before a grouped product."""
