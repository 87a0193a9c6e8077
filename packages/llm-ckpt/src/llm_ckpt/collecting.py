"""When Python's collector of cycles rests."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Generator[None]:
    """No search for cycles meanwhile, which would be half of the time of a large model's tables.

    They are some hundred thousand objects, made at once and hardly a cycle among them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
