"""The errors a file or a user can cause: each says where, what was found, what was wanted."""

import difflib
from collections.abc import Iterable, Sequence


class CheckpointError(ValueError):
    """Anything wrong with a checkpoint, a configuration or a requested layout."""


class FormatError(CheckpointError):
    """Bytes on disk that are not what their format says."""


class ArchError(CheckpointError):
    """An architecture that is malformed, or that this version cannot express."""


class LayoutError(CheckpointError):
    """Parallel sizes that do not divide the model."""


def suggest(found: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest known name, or nothing."""
    nearest = difflib.get_close_matches(found, list(known), n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def first_few(names: Sequence[str], *, limit: int = 5) -> str:
    """The first `limit` names and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" … and {rest} more" if rest > 0 else "")
