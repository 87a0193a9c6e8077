"""The rule that one size is a multiple of another."""

from __future__ import annotations

from collections.abc import Iterator


def multiple(name: str, size: int, divisor_name: str, divisor: int) -> Iterator[str]:
    """Yield the broken rule with its remainder, or nothing."""
    if size % divisor:
        yield (
            f"{name}({size}) is not a multiple of {divisor_name}({divisor}): "
            f"{size} % {divisor} = {size % divisor}"
        )
