"""Context parallel of our own: one sequence over several ranks, none holding all its scores."""
