"""A small process that ends a launcher's ranks when the launcher itself is gone.

It is run as a file by a bare interpreter, so it imports nothing of ours. Each line on its standard
input names a process group; the end of that input, however the launcher ended, kills them all.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Read process groups until the launcher is gone, then kill what is left of them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for group in [int(line) for line in sys.stdin]:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


if __name__ == "__main__":
    main()
