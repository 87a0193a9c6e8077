"""What this process holds of the machine's memory."""

import ctypes
import mmap


def resident_bytes() -> int | None:
    """This process's memory now, None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return None


def give_back_memory() -> None:
    """Hand freed memory to the system, where the C library (glibc) would keep it for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
