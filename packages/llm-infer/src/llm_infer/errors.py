"""The one error type of this package: a message a user can act on."""


class InferError(Exception):
    """Something a user or a file caused; printed as `Error: …`, without a traceback."""
