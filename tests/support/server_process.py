"""A server in a process of its own, on a free port of the loopback."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ECHO = (sys.executable, str(Path(__file__).with_name("echo_server.py")))
LLM_INFER = str(Path(sys.executable).parent / "llm-infer")


@dataclass
class Served:
    """Where it listens, and its process."""

    url: str
    process: subprocess.Popen

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    def rss_bytes(self):
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096


@contextmanager
def served(command: Sequence[str]):
    """Start, give the address it tells on stderr, and stop."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = Queue()
    # Read on, or a server that logs much would wait for us.
    reader = threading.Thread(target=_read, args=(process.stderr, said), daemon=True)
    reader.start()
    try:
        yield Served(_address(said), process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        process.stderr.close()


def _read(stream, said):
    for line in stream:
        said.put(line)
        # Where a failed test shows it.
        sys.stderr.write(line)
    said.put(None)


def _address(said):
    lines = []
    while (line := said.get(timeout=120)) is not None:
        lines.append(line)
        if found := re.search(r"http://[\d.]+:\d+", line):
            return found[0]
    raise AssertionError(f"no server: {''.join(lines)}")
