"""Signals that ask a run to end after the step it is in, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Schedulers send the first before they kill; the second is what one asks them to send earlier.
ASKING = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """The first signal that asked; a second one acts at once, as if nobody listened."""

    def __init__(self) -> None:
        self._number = 0

    def asked(self) -> int:
        """The number of the signal, 0 when none came."""
        return self._number

    def name(self, number: int) -> str:
        """The name of a signal."""
        return signal.Signals(number).name

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = number
        for one in ASKING:
            signal.signal(one, signal.SIG_DFL)


@contextmanager
def listening() -> Iterator[StopSignal]:
    """Note the signals of `ASKING` instead of ending by them; only in a main thread."""
    stop = StopSignal()
    before = {number: signal.signal(number, stop._note) for number in ASKING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
