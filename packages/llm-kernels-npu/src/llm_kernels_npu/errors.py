"""What selection and dispatch raise; each message says what was asked and what would work."""

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """An operator, backend or device that does not exist; the message lists those that do."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        known = sorted(choices)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}{hint} (choices: {', '.join(known)})")


class BackendMissingError(RuntimeError):
    """A backend whose package or device is not on this machine."""


class PackageMissingError(RuntimeError):
    """A package that an option of a command needs; the message says how to install it."""


class CallRefusedError(ValueError):
    """A call outside a backend's limits; the message names the backends that take it."""

    def __init__(self, operator: str, backend: str, reason: str, takers: Iterable[str]) -> None:
        others = ", ".join(takers) or "none"
        super().__init__(
            f"{operator}: backend {backend} refuses this call: {reason} "
            f"(backends here that take it: {others})"
        )
        self.operator = operator
        self.backend = backend
        self.reason = reason
