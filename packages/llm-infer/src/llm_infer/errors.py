"""The errors of this package: messages a user can act on."""


class InferError(Exception):
    """Something a user or a file caused; printed as `Error: …`, without a traceback."""


class BrokenModelError(InferError):
    """A model computed something that no text can be made of, through no fault of the request."""
