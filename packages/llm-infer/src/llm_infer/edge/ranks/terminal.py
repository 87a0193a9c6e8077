"""The end of a process that cannot end in its usual ways."""

import os
import sys

from llm_infer.edge.notes import note

try:
    import termios
except ImportError:  # not on Windows
    termios = None


class Terminal:
    """Remembers how the terminal was set, since a line editor may have changed it at the end."""

    def __init__(self) -> None:
        self._settings = None
        if termios is not None and sys.stdin is not None and sys.stdin.isatty():
            self._settings = termios.tcgetattr(sys.stdin)

    def end_process(self, reason: str) -> None:
        """Say why, and end with exit code 1, whatever the other threads wait for."""
        if termios is not None and self._settings is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._settings)
        note(f"Error: {reason}")
        os._exit(1)
