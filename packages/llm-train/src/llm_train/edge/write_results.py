"""What a forked writer hands its rank: one object, through a file that both hold open."""

import pickle
import queue
import tempfile
from typing import Any


class WriteResults:
    """A queue of one object that megatron-core's checkpoint writer fills, here or in a fork.

    megatron-core starts a manager process for it, which imports everything anew for 5 to 9 s. A
    pipe would not do: a writer whose results fill it waits to be read and so never ends, and its
    rank reads them only after it has ended.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the last that holds it

    def put(self, found: object) -> None:
        """Leave `found` for the process that reads."""
        pickle.dump(found, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        """What was put; raises queue.Empty when the writer ended before."""
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except (EOFError, pickle.UnpicklingError):
            raise queue.Empty from None
