"""A weight's gradient added up in float32 as it is made."""
