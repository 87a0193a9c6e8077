"""What a user or a file can get wrong, as exceptions with a message fit to print."""

from collections.abc import Iterable
from difflib import get_close_matches


class DataError(Exception):
    """A run cannot go on; the message says where, what was found and what was wanted."""


class FormatError(DataError, ValueError):
    """The bytes of a file are not what its format says."""


class UsageError(DataError, ValueError):
    """The arguments contradict each other or name something that does not exist."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """The first names, comma separated, and how many are left out."""
    every = list(names)
    shown = ", ".join(every[:most]) or "nothing"
    return shown if len(every) <= most else f"{shown} and {len(every) - most} more"
